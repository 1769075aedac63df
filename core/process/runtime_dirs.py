"""Directories for Unix sockets: in the state directory, or a short private one when its path is too long for a socket."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

from core.errors import ConfigError

_MAX_DIRECTORY: Final = 70  # of 107 bytes, the rest is for names below it


def socket_directory(state_dir: Path) -> Path:
    """Create a 0700 directory for sockets, always the same one for a state directory."""
    return private_directory(socket_directory_path(state_dir))


def socket_directory_path(state_dir: Path) -> Path:
    """Return that directory, which may not exist yet."""
    path = state_dir.resolve() / "run"
    if len(os.fsencode(path)) > _MAX_DIRECTORY:
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        path = base / f"millrace-{os.getuid()}-{digest}"
    return path


def private_directory(path: Path) -> Path:
    """Create a 0700 directory. One that exists must belong to this user, and be no link; else raises ConfigError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if path.is_symlink() or status.st_uid != os.getuid():
        raise ConfigError(f"{path} is not a directory of this user. Remove it, or choose another --state-dir.")
    return path
