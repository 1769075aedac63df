"""The warden compiles a grammar first, in a process of its own that may hang, run out of memory or crash for it.

`python -m engine.structured.compile_sandbox` is the helper; it loads no llama.cpp. It reads one grammar after the other from
the socket that is its standard input and answers each with an error message, empty when there is none.
It works on a stack and with memory far smaller than the engine's, so that what passes here cannot overrun there.
It ends when the engine does: its socket is closed then, and a compile in progress has two seconds of processor time.
"""

from __future__ import annotations

import math
import resource
import socket
import subprocess
import sys
import threading
import time
from typing import Final

from llguidance import LLTokenizer

from engine.errors import InvalidConstraint, SandboxUnavailable
from engine.structured.matcher import TOO_COMPLEX, compile_matcher

_MAX_MESSAGE_BYTES: Final = 160 << 10  # what a Unix socket takes in one piece by default
_MEMORY_BYTES: Final = 512 << 20
_STACK_BYTES: Final = 1 << 20
_CPU_SECONDS: Final = 2
_START_SECONDS: Final = 20.0
_READY: Final = b"ready"
_FINE: Final = b"\0"


class CompileSandbox:
    """The engine's side: one helper, replaced whenever it hangs or dies. For one thread at a time."""

    def __init__(self, *, timeout_seconds: float = 1.5) -> None:
        self._timeout_seconds = timeout_seconds
        self._helper: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._is_ready = False

    @property
    def pid(self) -> int | None:
        """Process id of the present helper."""
        return self._helper.pid if self._helper else None

    def start(self) -> None:
        """Start a helper unless one lives; it gets ready beside us. Raises SandboxUnavailable."""
        if self._helper is not None and self._helper.poll() is None:
            return
        self.close()
        try:
            self._launch()
        except OSError as error:
            raise SandboxUnavailable from error

    def check(self, grammar: str) -> None:
        """Compile a grammar in the helper. Raises InvalidConstraint: it is not valid, or it brought the helper down."""
        message = grammar.encode()
        if len(message) > _MAX_MESSAGE_BYTES:
            raise InvalidConstraint(TOO_COMPLEX)
        channel = self._ready_channel()
        channel.settimeout(self._timeout_seconds)
        try:
            channel.send(message)
            answer = channel.recv(_MAX_MESSAGE_BYTES)
        except OSError:  # a timeout is one
            answer = b""
        if not answer:
            self.close()
            self.start()  # ready by the time the next one comes
            raise InvalidConstraint(TOO_COMPLEX)
        if answer != _FINE:
            raise InvalidConstraint(answer.decode())

    def close(self) -> None:
        """End the helper."""
        if self._socket is not None:
            self._socket.close()
        if self._helper is not None:
            self._helper.kill()
            self._helper.wait()
        self._socket = self._helper = None
        self._is_ready = False

    def _launch(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._helper = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.structured.compile_sandbox"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a panic's message may quote the grammar
                start_new_session=True,
            )

    def _ready_channel(self) -> socket.socket:
        self.start()
        assert self._socket is not None, "started"
        if not self._is_ready:
            self._socket.settimeout(_START_SECONDS)
            try:
                self._is_ready = self._socket.recv(len(_READY)) == _READY
            except OSError:
                self._is_ready = False
            if not self._is_ready:
                self.close()
                raise SandboxUnavailable
        return self._socket


# --- the helper ------------------------------------------------------------------------------------------------------


def _serve(channel: socket.socket) -> None:
    tokenizer = LLTokenizer("byte")
    channel.send(_READY)
    while message := channel.recv(_MAX_MESSAGE_BYTES):
        _renew_processor_time()
        try:
            compile_matcher(tokenizer, message.decode())
        except InvalidConstraint as error:
            channel.send(str(error).encode())
        else:
            channel.send(_FINE)


def _renew_processor_time() -> None:
    """The limit counts from the process's start; this grammar gets seconds of its own, then SIGXCPU."""
    until = math.ceil(time.process_time()) + _CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """The helper's process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    threading.stack_size(_STACK_BYTES)
    server = threading.Thread(target=_serve, args=(socket.socket(fileno=0),))
    server.start()
    server.join()


if __name__ == "__main__":
    main()
