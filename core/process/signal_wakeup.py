"""Waits of a main thread that signals end: the end of a child, too, so a supervisor needs no quick polling."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def woken_by_signals() -> Iterator[Callable[[float], None]]:
    """Yield a function that waits for so many seconds, or until a signal with a handler or SIGCHLD comes.

    A signal that comes between two waits ends the next one at once.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        last_handler = signal.signal(signal.SIGCHLD, lambda *_: None)  # ignored by default, and then it ends no wait
        last_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def wait(seconds: float) -> None:
            select.select([reader], [], [], seconds)
            with suppress(BlockingIOError):
                reader.recv(4096)

        try:
            yield wait
        finally:
            signal.set_wakeup_fd(last_fd)
            signal.signal(signal.SIGCHLD, last_handler)
