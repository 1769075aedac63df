"""The lock of a state directory: one launcher at a time. Its file has the launcher's pid and, once it serves, its address."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from core.errors import ConfigError
from core.process.runtime_dirs import private_directory

_NAME: Final = "lock"


@dataclass(frozen=True, slots=True)
class Launcher:
    """The launcher that holds a lock: its pid, and the address of its api, empty while it starts."""

    pid: str
    url: str

    def __str__(self) -> str:
        return f"pid {self.pid}, {self.url}" if self.url else f"pid {self.pid}"


class StateLock:
    """A lock on the state directory, held until the process ends."""

    def __init__(self, state_dir: Path) -> None:
        private_directory(state_dir)
        path = state_dir / _NAME
        self._stream: IO[str] = path.open("a+")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            launcher = _read(self._stream)
            self._stream.close()
            raise ConfigError(
                f"The state directory {state_dir} is in use by a running Millrace ({launcher}). "
                "Use that one, stop it, or choose another --state-dir."
            ) from None
        self._stream.seek(0)
        if not self._stream.read(20).split("\n")[0].strip().isdigit() and path.stat().st_size:
            self._stream.close()
            raise ConfigError(f"{path} is not a lock of Millrace. Choose another --state-dir, or move that file away.")
        self.write("")

    def write(self, url: str) -> None:
        """Record this process and the address of its api."""
        self._stream.seek(0)
        self._stream.truncate(0)
        self._stream.write(f"{os.getpid()}\n{url}\n")
        self._stream.flush()

    def release(self) -> None:
        """Release the lock."""
        self._stream.close()


def running_launcher(state_dir: Path) -> Launcher | None:
    """Return the launcher that uses this state directory; None when none runs. Changes nothing."""
    try:
        with (state_dir / _NAME).open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read(stream)
    except FileNotFoundError:
        pass
    return None


def last_pid(state_dir: Path) -> str:
    """Return the pid of the last launcher that used this state directory."""
    with (state_dir / _NAME).open() as stream:
        return _read(stream).pid


def _read(stream: IO[str]) -> Launcher:
    stream.seek(0)
    pid, _, url = stream.read(4096).partition("\n")
    return Launcher(pid.strip() or "unknown", url.strip())
