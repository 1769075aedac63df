"""Tickets that the broker does not take: `False` at once, then a pause."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from celery import Celery

from core.queue.celery_app import make_sender
from core.queue.tickets import Tickets
from core.settings import Settings


class ClosingBroker:
    """Accepts connections, counts them and closes them at once, as a proxy without its broker does."""

    def __init__(self, listener: socket.socket) -> None:
        self.num_connections = 0
        self._listener = listener
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self.num_connections += 1
                connection.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def sender(listener: socket.socket) -> Celery:
    return make_sender(Settings(redis_url=f"redis://127.0.0.1:{listener.getsockname()[1]}/0"))


def test_without_a_broker_a_ticket_is_lost_at_once(listener: socket.socket) -> None:
    broker = ClosingBroker(listener)
    try:
        assert not Tickets(sender(listener)).prepare("batch")
    finally:
        broker.close()
    assert broker.num_connections == 1, "kombu tries three times within six seconds"


def num_callers(listener: socket.socket) -> int:
    """Count and close the connections since the last call."""
    number = 0
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            number += 1
    return number


def test_a_failed_broker_is_tried_again_a_moment_later(listener: socket.socket) -> None:
    """The broker is frozen: it accepts connections, and sends nothing."""
    now = 100.0
    listener.settimeout(0)
    tickets = Tickets(sender(listener), clock=lambda: now)
    began = time.monotonic()
    assert not tickets.prepare("batch")
    assert time.monotonic() - began < 9, "a request of the api waits for it; a consumer waits ten seconds"
    assert num_callers(listener) == 1
    assert not tickets.finalize("batch")
    assert num_callers(listener) == 0
    now += 1.1
    assert not tickets.finalize("batch")
    assert num_callers(listener) == 1
