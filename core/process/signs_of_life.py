"""Signs of life: a file for each process in its socket directory, which its own loop renews and `millrace health` reads.

A process locks its file, and the lock ends with the process, however that ends. The loop that does the work writes the
monotonic clock, which all processes of a host share, into it. So a process that was killed, is frozen or is stuck differs from
one that works, without a look at the database.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import IO, Final

import msgspec

from core.process.child_process import notify_watchdog
from core.process.runtime_dirs import socket_directory, socket_directory_path

WITHIN_SECONDS: Final = 30.0
_RENEW_SECONDS: Final = 2.0
_ENDING: Final = ".alive"
_SIZE: Final = 1024  # in bytes, so that each sign replaces all of the one before


class Role(StrEnum):
    """The processes that give signs."""

    API = "api"
    CLERK = "clerk"
    WORKER = "worker"


class Phase(StrEnum):
    """What a process does; READY is all that it is there for."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class Sign(msgspec.Struct, frozen=True, kw_only=True):
    """The last sign of a process. `at` is the monotonic clock's; the next one comes `within` seconds.

    `name` is the device of a worker, `url` the address of an api, `problem` what the process itself finds wrong.
    """

    role: Role
    pid: int
    phase: Phase
    at: float
    within: float
    name: str = ""
    url: str = ""
    problem: str = ""
    is_running: bool = False


class SignsOfLife:
    """The file of this process. Call `give` in the loop that does its work; systemd's watchdog gets its signs, too."""

    def __init__(
        self,
        state_dir: Path,
        role: Role,
        name: str = "",
        *,
        within_seconds: float = WITHIN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._role = role
        self._name = name
        self._within = within_seconds
        self._clock = clock
        self._given: tuple[Phase, str, str] | None = None
        self._due_at = 0.0
        self._file = _own_file(socket_directory(state_dir), role, name)
        self.give(Phase.STARTING)

    def give(self, phase: Phase = Phase.READY, *, url: str = "", problem: str = "") -> None:
        """Write a sign, if the last one is two seconds old or differs. A disk that is full is ignored."""
        now = self._clock()
        if now < self._due_at and self._given == (phase, url, problem):
            return
        self._given, self._due_at = (phase, url, problem), now + _RENEW_SECONDS
        sign = Sign(
            role=self._role,
            pid=os.getpid(),
            phase=phase,
            at=now,
            within=self._within,
            name=self._name,
            url=url,
            problem=problem[: _SIZE // 2],
        )
        with suppress(OSError):
            os.pwrite(self._file.fileno(), msgspec.json.encode(sign)[:_SIZE].ljust(_SIZE), 0)
        notify_watchdog()

    def close(self) -> None:
        """Give no more signs; the end of the process does the same."""
        self._file.close()


def read_signs(state_dir: Path, role: Role | None = None) -> list[Sign]:
    """Return the last signs of the processes that have used this state directory, by role and name; of one role, if given."""
    found = []
    for path in sorted(socket_directory_path(state_dir).glob(f"{role or ''}*{_ENDING}")):
        with (
            suppress(OSError, msgspec.DecodeError),
            path.open("rb") as stream,
        ):  # one that is not readable has just begun
            sign = msgspec.json.decode(stream.read(), type=Sign)
            found.append(msgspec.structs.replace(sign, is_running=_is_locked(stream)))
    return sorted(found, key=lambda sign: (sign.role, sign.name, sign.pid))


def _own_file(folder: Path, role: Role, name: str) -> IO[bytes]:
    """Lock a file of this role and name, the first one that no process has, and remove those that others have left."""
    digest = f"-{hashlib.sha256(name.encode()).hexdigest()[:10]}" if name else ""
    own: IO[bytes] | None = None
    number = 0
    while own is None or (folder / f"{role}{digest}.{number}{_ENDING}").exists():
        path = folder / f"{role}{digest}.{number}{_ENDING}"
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        number += 1
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which a child that is forked does not inherit
        except OSError:
            stream.close()
            continue
        if own is None and os.fstat(stream.fileno()).st_nlink:
            own = stream
        else:
            path.unlink(missing_ok=True)
            stream.close()
    return own


def _is_locked(stream: IO[bytes]) -> bool:
    try:
        fcntl.lockf(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
