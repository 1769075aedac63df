"""`make audit`: do published advisories name a package we install? Asks a service on the network, so it is no part of the tests.

pip-audit runs in an environment of its own that is thrown away, on the pinned versions of `constraints.txt`. Exit codes: 0 none
is named, 1 some are, 2 that could not be found out.
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
_FOUND: Final = 1  # pip-audit's exit code when it has found something


class NotKnown(Exception):
    """Whether advisories name a package could not be found out."""


def main() -> int:
    """Prints each advisory, and says plainly when nobody could be asked."""
    try:
        with tempfile.TemporaryDirectory(prefix="millrace-audit-") as folder:
            findings = advisories(_audit(Path(folder)))
    except NotKnown as error:
        sys.stderr.write(f"Not audited: {error}\nThis says nothing about the packages, neither good nor bad.\n")
        return 2
    for finding in findings:
        sys.stdout.write(finding + "\n")
    sys.stdout.write(f"{len(findings)} advisories for the versions of {_CONSTRAINTS.name}.\n")
    return 1 if findings else 0


def advisories(report: dict[str, Any]) -> list[str]:  # Any: pip-audit's JSON
    """A line for each; packages that could not be looked up are NotKnown, not clean."""
    packages = report["dependencies"]
    skipped = [f"{package['name']} ({package['skip_reason']})" for package in packages if "skip_reason" in package]
    if skipped:
        raise NotKnown(f"no answer about {', '.join(skipped)}")
    return [
        f"{package['name']} {package['version']}: {found['id']}, "
        f"mended in {', '.join(found['fix_versions']) or 'no version yet'}"
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
    said = _run("pip-audit got no answer", python, "-m", "pip_audit", "-r", requirements, *flags, fine=(0, _FOUND))
    try:
        report: dict[str, Any] = json.loads(said)
    except ValueError:
        raise NotKnown(f"pip-audit said {said[-300:]!r}") from None
    return report


def _pinned(constraints: str) -> str:
    """The lines that pin a version, without comments and options."""
    lines = (line.partition("#")[0].strip() for line in constraints.splitlines())
    return "".join(f"{line}\n" for line in lines if "==" in line)


def _run(trouble: str, *command: str | Path, fine: tuple[int, ...] = (0,)) -> str:
    """What it printed."""
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NotKnown(f"{trouble} within {_SECONDS} s") from None
    if done.returncode not in fine or (done.returncode and not done.stdout):
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise NotKnown(f"{trouble}: {last[0]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
