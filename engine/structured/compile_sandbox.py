"""Compile sandbox: compile an untrusted grammar in a helper process, which may hang, run out of memory or crash.

`python -m engine.structured.compile_sandbox` is the helper; it does not load llama.cpp. It reads grammars from the socket
that is its standard input, and replies to each with an error message or a zero byte.
Its stack and memory are far smaller than the engine's, so a grammar that compiles in the helper compiles in the engine.
It ends with the engine, which closes the socket; a compilation then in progress has two seconds of processor time at most.
"""

from __future__ import annotations

import math
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Final

from llguidance import LLTokenizer

from engine.errors import InvalidConstraint, SandboxUnavailable
from engine.structured.matcher import TOO_COMPLEX, compile_matcher

_MAX_MESSAGE_BYTES: Final = 160 << 10  # default limit of one message on a Unix socket
_MEMORY_BYTES: Final = 512 << 20
_STACK_BYTES: Final = 1 << 20
_CPU_SECONDS: Final = 2
_START_SECONDS: Final = 20.0
_READY: Final = b"ready"
_VALID: Final = b"\0"


class CompileSandbox:
    """Owns one helper process, which is replaced when it hangs or crashes. For one thread at a time."""

    def __init__(self, *, timeout_seconds: float = 1.5) -> None:
        self._timeout_seconds = timeout_seconds
        self._helper: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._is_ready = False

    @property
    def pid(self) -> int | None:
        """Process id of the current helper."""
        return self._helper.pid if self._helper else None

    def start(self) -> None:
        """Start a helper unless one is running, without waiting until it is ready. Raises SandboxUnavailable."""
        if self._helper is not None and self._helper.poll() is None:
            return
        self.close()
        try:
            self._launch()
        except OSError as error:
            raise SandboxUnavailable from error

    def check(self, grammar: str) -> None:
        """Compile a grammar in the helper. Raises InvalidConstraint if it is invalid, or if it hung or crashed the helper."""
        message = grammar.encode()
        if len(message) > _MAX_MESSAGE_BYTES:
            raise InvalidConstraint(TOO_COMPLEX)
        channel = self._ready_channel()
        channel.settimeout(self._timeout_seconds)
        try:
            channel.send(message)
            reply = channel.recv(_MAX_MESSAGE_BYTES)
        except OSError:  # includes a timeout
            reply = b""
        if not reply:
            self.close()
            self.start()  # in advance of the next grammar
            raise InvalidConstraint(TOO_COMPLEX)
        if reply != _VALID:
            raise InvalidConstraint(reply.decode())

    def close(self) -> None:
        """Kill the helper."""
        if self._socket is not None:
            self._socket.close()
        if self._helper is not None:
            self._helper.kill()
            self._helper.wait()
        self._socket = self._helper = None
        self._is_ready = False

    def _launch(self) -> None:
        self._socket, helper_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with helper_socket:
            self._helper = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.structured.compile_sandbox"],
                stdin=helper_socket.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a panic's message may quote the grammar
                start_new_session=True,
            )

    def _ready_channel(self) -> socket.socket:
        self.start()
        assert self._socket is not None, "started"
        if not self._is_ready:
            self._socket.settimeout(_START_SECONDS)
            with suppress(OSError):  # includes a timeout
                self._is_ready = self._socket.recv(len(_READY)) == _READY
            if not self._is_ready:
                self.close()
                raise SandboxUnavailable
        return self._socket


# --- the helper ------------------------------------------------------------------------------------------------------


def _serve(channel: socket.socket) -> None:
    tokenizer = LLTokenizer("byte")
    channel.send(_READY)
    while message := channel.recv(_MAX_MESSAGE_BYTES):
        _extend_cpu_limit()
        try:
            compile_matcher(tokenizer, message.decode())
        except InvalidConstraint as error:
            channel.send(str(error).encode())
        else:
            channel.send(_VALID)


def _extend_cpu_limit() -> None:
    """Allow the next grammar its own processor time; after it the kernel sends SIGXCPU. The limit counts from process start."""
    until = math.ceil(time.process_time()) + _CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """Run the helper process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    threading.stack_size(_STACK_BYTES)
    server = threading.Thread(target=_serve, args=(socket.socket(fileno=0),))
    server.start()
    server.join()


if __name__ == "__main__":
    main()
