"""`make audit`: list the published advisories for installed packages. It needs the network, so it is not one of the tests.

pip-audit runs in a temporary environment, on the pinned versions of `constraints.txt`. Exit codes: 0 no advisory, 1 at least
one, 2 the audit failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any, Final

_CONSTRAINTS: Final = Path(__file__).resolve().parent.parent / "constraints.txt"
_SECONDS: Final = 300
_FOUND: Final = 1  # pip-audit's exit code when it finds an advisory


class AuditFailed(Exception):
    """The audit could not be completed."""


def main() -> int:
    """Print each advisory, or the reason why the audit failed."""
    try:
        with tempfile.TemporaryDirectory(prefix="millrace-audit-") as folder:
            findings = advisories(_audit(Path(folder)))
    except AuditFailed as error:
        sys.stderr.write(f"Not audited: {error}\nThe packages may or may not have advisories.\n")
        return 2
    for finding in findings:
        sys.stdout.write(finding + "\n")
    sys.stdout.write(f"{len(findings)} advisories for the versions of {_CONSTRAINTS.name}.\n")
    return 1 if findings else 0


def advisories(report: dict[str, Any]) -> list[str]:  # Any: pip-audit's JSON
    """Return a line for each advisory; raises AuditFailed if a package could not be looked up."""
    packages = report["dependencies"]
    skipped = [f"{package['name']} ({package['skip_reason']})" for package in packages if "skip_reason" in package]
    if skipped:
        raise AuditFailed(f"no answer about {', '.join(skipped)}")
    return [
        f"{package['name']} {package['version']}: {found['id']}, "
        f"fixed in {', '.join(found['fix_versions']) or 'no version yet'}"
        for package in packages
        for found in package["vulns"]
    ]


def _audit(folder: Path) -> dict[str, Any]:  # Any: pip-audit's JSON
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    _run("pip-audit could not be installed", python, "-m", "pip", "install", "--quiet", "pip-audit")
    requirements = folder / "requirements.txt"
    requirements.write_text(_pinned(_CONSTRAINTS.read_text()))
    flags = ("--format", "json", "--progress-spinner", "off", "--disable-pip", "--no-deps", "--timeout", "15")
    printed = _run(
        "pip-audit got no answer", python, "-m", "pip_audit", "-r", requirements, *flags, expected=(0, _FOUND)
    )
    try:
        report: dict[str, Any] = json.loads(printed)
    except ValueError:
        raise AuditFailed(f"pip-audit printed {printed[-300:]!r}") from None
    return report


def _pinned(constraints: str) -> str:
    """Return the lines that pin a version, without comments and options."""
    lines = (line.partition("#")[0].strip() for line in constraints.splitlines())
    return "".join(f"{line}\n" for line in lines if "==" in line)


def _run(problem: str, *command: str | Path, expected: tuple[int, ...] = (0,)) -> str:
    """Return the standard output of a command; raises AuditFailed, with `problem` in its message."""
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise AuditFailed(f"{problem} within {_SECONDS} s") from None
    if done.returncode not in expected or (done.returncode and not done.stdout):
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise AuditFailed(f"{problem}: {last[0]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
