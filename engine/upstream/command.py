"""The server that a model file's `command` starts: in a process group of its own, watched, and stopped with the engine.

A guard, which is a shell that waits at a pipe, kills the group when the engine ends in any way, `kill -9` included. What the
server prints goes to the log of the engine; its last lines are kept until it is ready.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from engine.config import UpstreamConfig
from engine.errors import ModelFailed
from engine.log import log_stderr
from engine.upstream.http_client import Transport
from engine.upstream.trouble import Refused, Trouble

HOST: Final = "127.0.0.1"
_PORT: Final = "{port}"
_PR_SET_PDEATHSIG: Final = 1
_GUARD: Final = 'read -r line || kill -KILL "-$0"'
_STOP_SECONDS: Final = 1.5  # the launcher gives an engine 2
_POLL_SECONDS: Final = 0.2
_ANSWER_SECONDS: Final = 5.0
_MAX_LINE_BYTES: Final = 64 << 10
_KEPT_LINES: Final = 3
_MAX_CHARACTERS: Final = 240
_libc: Final = ctypes.CDLL(None, use_errno=True)


class CommandServer:
    """One run of the command. To be created in the main thread; raises ModelFailed if it cannot be started.

    `on_exit` is called with its exit code, from a thread, when it ends after it was ready and before `stop`.
    """

    def __init__(
        self, config: UpstreamConfig, port: int, redact: Callable[[str], str], on_exit: Callable[[int], None]
    ) -> None:
        self._config = config
        self._redact = redact
        self._on_exit = on_exit
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._is_serving = False
        command = [part.replace(_PORT, str(port)) for part in config.command]
        self._guard_input, write_end = os.pipe()
        self._name = command[0]
        parent = os.getpid()

        def before_exec() -> None:  # system calls only
            _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != parent:
                os._exit(1)

        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=before_exec,
                env=environment,
            )
        except OSError as error:
            raise ModelFailed(f"`command` cannot be started: {error.strerror}: {command[0]}") from None
        self._guard_output = write_end
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(self._process.pid)],
            stdin=self._guard_input,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={},
        )
        os.close(self._guard_input)
        self._reader = threading.Thread(target=self._copy_output, name="server-output", daemon=True)
        self._reader.start()

    async def wait_ready(self, transport: Transport) -> None:
        """Wait until `health_path` answers 200; raises ModelFailed with the last words of the server."""
        try:
            async with asyncio.timeout(self._config.ready_seconds):
                while not await self._is_ready(transport):
                    if (code := self._process.poll()) is not None:
                        self._reader.join(1)
                        raise ModelFailed(f"The server of `command` ended with {_exit(code)}{self._words()}")
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise ModelFailed(
                f"The server of `command` did not answer 200 at {self._config.health_path} within "
                f"{self._config.ready_seconds:g} s{self._words()}"
            ) from None
        self._is_serving = True
        threading.Thread(target=self._wait, name="server-exit", daemon=True).start()

    def stop(self) -> None:
        """Ask the group to end, then kill it."""
        self._is_serving = False
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        with suppress(OSError):
            os.write(self._guard_output, b"\n")
        os.close(self._guard_output)

    async def _is_ready(self, transport: Transport) -> bool:
        try:
            async with transport.send("GET", self._config.health_path, None, _ANSWER_SECONDS) as answer:
                await answer.read()
        except (Trouble, Refused):
            return False
        return answer.status == 200

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _copy_output(self) -> None:
        """Copy what the server prints, so that its last lines can be shown."""
        assert self._process.stdout is not None, "it is a pipe"
        while line := self._process.stdout.readline(_MAX_LINE_BYTES):
            text = self._redact(line.decode(errors="replace"))
            log_stderr(text)
            if words := text.rstrip().rpartition("\r")[2].split():  # the last state of a progress bar
                self._last_lines.append(" ".join(words))

    def _wait(self) -> None:
        code = self._process.wait()
        if self._is_serving:
            self._on_exit(code)

    def _words(self) -> str:
        words = " | ".join(self._last_lines)
        return f": {words[-_MAX_CHARACTERS:]}" if words else "."


def choose_port(port: int | None) -> int:
    """The port that the file names, which must be free, or any free one; raises ModelFailed."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port or 0))
        except OSError as error:
            raise ModelFailed(f"`port` {port} cannot be used: {error.strerror}.") from None
        return int(probe.getsockname()[1])


def _exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
