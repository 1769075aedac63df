"""Child processes that never outlive their parent.

A child gets a session of its own, so that Ctrl-C of a terminal reaches only the launcher, and a parent-death signal, so that
even `kill -9` of the launcher leaves no process behind. That signal comes when the *thread* that started the child ends:
start children from the main thread.
Readiness is systemd's protocol: a datagram `READY=1` to the socket named in NOTIFY_SOCKET.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, NoReturn

from core.errors import MillraceError, Unreachable
from core.process.clone import set_parent_death_signal
from core.process.fork_server import ForkServer
from core.process.hardening import harden_process

STDERR: Final = Path("/dev/stderr")  # as a log: the child writes to the standard error of its parent

_UNREACHABLE: Final = 5


class ChildFailed(MillraceError):
    """A process of the stack ended unexpectedly."""


class StartInterrupted(MillraceError):
    """The start was cancelled before everything was ready."""


class Child:
    """A child process. `prepare` runs in it before the program starts, and must be limited to system calls.

    With a `fork_server`, the command is `python -P -m MODULE …`, and its process shares memory with others of that server.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
        prepare: Callable[[], None] | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = f"\0millrace-{secrets.token_hex(8)}"
        self._ready.bind(address)
        words = [str(part) for part in command]
        environment = {**(os.environ if env is None else env), "NOTIFY_SOCKET": "@" + address[1:]}
        with log.open("ab") if log != STDERR else os.fdopen(os.dup(2), "ab") as output:
            forked = fork_server and fork_server.spawn(words, output.fileno(), environment, death_signal)
            self._process = forked or _execute(words, output, environment, death_signal, prepare)

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return None while it runs; a negative code is a signal."""
        return self._process.poll()

    def wait_ready(self, timeout_seconds: float, is_stopping: Callable[[], bool] = lambda: False) -> str:
        """Wait until the child is ready, and return its status line.

        Raises ChildFailed with the end of its log when it exits or is late, and StartInterrupted when `is_stopping`.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if is_stopping():
                raise StartInterrupted
            if (status := self.ready_status(0.05)) is not None:
                return status
            if self.exit_code() is not None:
                raise ChildFailed(self.exit_report())
        raise ChildFailed(
            f"{self.name} was not ready after {timeout_seconds:.0f} s. Its log ends:\n{log_tail(self.log)}"
        )

    def ready_status(self, timeout_seconds: float) -> str | None:
        """Return the status line of the datagram that reports readiness, sent once; None after the timeout."""
        if select.select([self._ready], [], [], timeout_seconds)[0]:
            fields = dict(line.split("=", 1) for line in self._ready.recv(4096).decode().splitlines())
            if fields.get("READY") == "1":
                return fields.get("STATUS", "")
        return None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the child, if it runs."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the exit; False after the timeout."""
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, number: signal.Signals, timeout_seconds: float) -> None:
        """Send a signal, wait for the exit, then kill its whole group."""
        if self.exit_code() is None:
            self.send(number)
            self.wait(timeout_seconds)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._ready.close()

    def exit_report(self) -> str:
        """Describe the exit, with the end of the log."""
        return exit_report(self.name, self.exit_code(), self.log)


def _execute(
    command: list[str],
    output: IO[bytes],
    environment: dict[str, str],
    death_signal: signal.Signals,
    prepare: Callable[[], None] | None,
) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def before_exec() -> None:
        harden_process()
        if prepare is not None:
            prepare()
        set_parent_death_signal(parent, death_signal)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=before_exec,
        env=environment,
    )


def exit_report(name: str, exit_code: int | None, log: Path) -> str:
    """Describe the exit of a process, with the end of its log."""
    return f"{name} ended with exit code {exit_code}. Its log ({log}) ends:\n{log_tail(log)}"


def log_tail(log: Path, lines: int = 15) -> str:
    """Return the end of a log; empty without one."""
    if log == STDERR:
        return ""
    with suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 8192))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])
    return ""


def exit_with(name: str, error: Exception) -> NoReturn:
    """End a process that cannot start, with the reason on stderr and an exit code of docs/commands.md."""
    sys.stderr.write(f"millrace {name}: {error}\n")
    sys.exit(_UNREACHABLE if isinstance(error, Unreachable) else 1)


def notify_ready(status: str = "") -> None:
    """Report readiness, with one status line, to the process that set NOTIFY_SOCKET, if any."""
    _notify(f"READY=1\nSTATUS={status}")


def notify_watchdog() -> None:
    """Report to systemd that this process works, if its unit has a watchdog for it and not for a parent of it."""
    if os.environ.get("WATCHDOG_PID") == str(os.getpid()):
        _notify("WATCHDOG=1")


def _notify(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stream, suppress(OSError):
        stream.connect("\0" + address[1:] if address.startswith("@") else address)
        stream.send(message.encode())
