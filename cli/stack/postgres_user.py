"""The user that Postgres runs as: it refuses to run as root, and containers often are root.

As root, the first choice is a user namespace in which root is mapped to `nobody`: files stay root's and nothing outside changes.
Where that is forbidden, setuid to `nobody` with directories it owns. Modes of foreign directories are never changed.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.errors import ConfigError

_CLONE_NEWUSER: Final = 0x10000000
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresUser:
    """How to become the user (`prepare` runs in the child), and where its binaries, data and sockets are."""

    how: str
    binaries: Path
    data: Path
    sockets: Path
    prepare: Callable[[], None] | None = None


def choose_user(binaries: Path, data: Path, sockets: Path) -> PostgresUser:
    """Return the first way that works here, found by trying each."""
    if os.getuid() != 0:
        return PostgresUser(how="as this user", binaries=binaries, data=data, sockets=sockets)
    nobody = pwd.getpwnam("nobody")
    enter = _namespace_entry(nobody.pw_uid, nobody.pw_gid)
    if not os.environ.get("MILLRACE_NO_USER_NAMESPACE") and _works(binaries, enter):
        how = "as root, called nobody in a user namespace"
        return PostgresUser(how=how, binaries=binaries, data=data, sockets=sockets, prepare=enter)
    return _as_nobody(binaries, data, nobody)


def _namespace_entry(uid: int, gid: int) -> Callable[[], None]:
    files = (
        (b"/proc/self/setgroups", b"deny"),
        (b"/proc/self/uid_map", f"{uid} 0 1".encode()),
        (b"/proc/self/gid_map", f"{gid} 0 1".encode()),
    )

    def enter() -> None:
        if _libc.unshare(_CLONE_NEWUSER) != 0:
            os._exit(77)
        for path, content in files:
            handle = os.open(path, os.O_WRONLY)
            os.write(handle, content)
            os.close(handle)

    return enter


def _as_nobody(binaries: Path, data: Path, nobody: pwd.struct_passwd) -> PostgresUser:
    """Put data and sockets below the temporary directory, owned by `nobody`; a file beside `data` records the location."""
    note = data.with_name(data.name + ".location")
    home = Path(note.read_text().strip()) if note.exists() else Path(tempfile.mkdtemp(prefix="millrace-postgres-"))
    note.write_text(f"{home}\n")

    def become() -> None:
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)

    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    home.chmod(0o700)
    if not _works(binaries, become):
        binaries = _copy_binaries(binaries, home, nobody)
    if not _works(binaries, become):
        raise ConfigError(
            "Postgres cannot run as root, and neither a user namespace nor the user `nobody` works here. "
            "Run Millrace as an ordinary user, or set DATABASE_URL to an external Postgres."
        )
    sockets = home / "run"
    sockets.mkdir(mode=0o700, exist_ok=True)
    os.chown(sockets, nobody.pw_uid, nobody.pw_gid)
    how = f"as nobody, with its data in {home}"
    return PostgresUser(how=how, binaries=binaries, data=home / "data", sockets=sockets, prepare=become)


def _copy_binaries(binaries: Path, home: Path, nobody: pwd.struct_passwd) -> Path:
    """Copy the package with its sibling `*.libs`: the binaries find their libraries by a relative path."""
    package = next(parent for parent in binaries.parents if (parent / "__init__.py").exists())
    target = home / "package"
    if not target.exists():
        for source in (package, *package.parent.glob(f"{package.name}*.libs")):
            shutil.copytree(source, target / source.name, symlinks=True, dirs_exist_ok=True)
        for path in (target, *target.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    return target / binaries.relative_to(package.parent)


def _works(binaries: Path, prepare: Callable[[], None]) -> bool:
    """Check that the program starts this way."""
    try:
        command = [str(binaries / "initdb"), "--version"]
        return subprocess.run(command, preexec_fn=prepare, capture_output=True, check=False, cwd="/").returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
