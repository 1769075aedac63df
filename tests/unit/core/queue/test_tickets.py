"""Tickets that the broker does not take: `False` at once, then a pause."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import pytest

from core.queue.celery_app import make_sender
from core.queue.tickets import Tickets
from core.settings import Settings


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_without_a_broker_a_ticket_is_lost_at_once(free_port: int) -> None:
    tickets = Tickets(make_sender(Settings(redis_url=f"redis://127.0.0.1:{free_port}/0")))
    began = time.monotonic()
    assert not tickets.prepare("batch")
    assert time.monotonic() - began < 1, "kombu would try for six seconds"


def num_callers(listener: socket.socket) -> int:
    """Count and close the connections since the last call."""
    number = 0
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            number += 1
    return number


def test_a_failed_broker_is_tried_again_a_moment_later() -> None:
    """The broker is frozen: it accepts connections, and sends nothing."""
    now = 100.0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        tickets = Tickets(make_sender(Settings(redis_url=url)), clock=lambda: now)
        began = time.monotonic()
        assert not tickets.prepare("batch")
        assert time.monotonic() - began < 3, "an api's request waits for it"
        assert num_callers(listener) > 0
        assert not tickets.finalize("batch")
        assert num_callers(listener) == 0
        now += 1.1
        assert not tickets.finalize("batch")
        assert num_callers(listener) > 0
