"""Time-outs of connections that clients do not read, with a fake clock and a fake transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from api.http.connection_limits import _WriteTimeout


class Transport:
    """A transport with this number of bytes in its write buffer."""

    def __init__(self) -> None:
        self.unread = 100_000
        self.is_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, _: str) -> Any:
        return self

    def setsockopt(self, *_: object) -> None:
        """Record a reset instead of a close."""

    def abort(self) -> None:
        self.is_aborted = True


class Loop:
    """An event loop with a manual clock."""

    def __init__(self) -> None:
        self._waiting: Callable[[], None] | None = None

    def call_later(self, _: float, action: Callable[[int], None], unread: int) -> Loop:
        self._waiting = lambda: action(unread)
        return self

    def cancel(self) -> None:
        self._waiting = None

    def pass_time(self) -> None:
        assert self._waiting is not None, "no timer is set"
        self._waiting()

    @property
    def is_waited_for(self) -> bool:
        return self._waiting is not None


class Flow:
    def pause_writing(self) -> None:
        """Uvicorn's callbacks."""

    resume_writing = pause_writing


@pytest.fixture
def connection() -> Any:
    """A protocol with a time-out of ten seconds."""
    made = object.__new__(type("Protocol", (_WriteTimeout,), {"pause_seconds": 10.0}))
    made.transport, made.loop, made.flow = Transport(), Loop(), Flow()
    return made


def test_a_client_that_takes_nothing_is_dropped(connection: Any) -> None:
    connection.pause_writing()
    connection.loop.pass_time()
    assert connection.transport.is_aborted


def test_a_client_that_trickles_is_dropped_and_one_that_is_only_slow_is_not(connection: Any) -> None:
    connection.pause_writing()
    for _ in range(3):
        connection.transport.unread -= 10 * 1024
        connection.loop.pass_time()
        assert not connection.transport.is_aborted
    connection.transport.unread -= 10 * 1024 - 1
    connection.loop.pass_time()
    assert connection.transport.is_aborted


def test_a_client_that_has_caught_up_has_all_the_time_again(connection: Any) -> None:
    connection.pause_writing()
    connection.resume_writing()
    assert not connection.loop.is_waited_for
