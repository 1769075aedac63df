"""Channel listener: messages, and a connection that becomes silent."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.fake_valkey import FakeValkey
from tests.support.stack import wait_for
from workers.runtime.channel_listener import ChannelListener

CHANNEL = "listener-test"


@pytest.fixture
def received() -> queue.SimpleQueue[str]:
    return queue.SimpleQueue()


class BlackHole:
    """Accepts connections on a socket and never sends a byte."""

    def __init__(self, path: str) -> None:
        self.num_taken = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen()
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        while True:
            try:
                self._kept.append(self._socket.accept()[0])
            except OSError:
                return
            self.num_taken += 1

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # a close alone does not wake `accept`
        self._thread.join(10)
        for each in (self._socket, *self._kept):
            each.close()


@pytest.fixture
def black_hole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BlackHole, Callable[[], redis.Redis]]]:
    path = str(tmp_path_factory.mktemp("h") / "s")
    hole = BlackHole(path)
    client = redis.Redis(unix_socket_path=path, socket_timeout=0.2, protocol=2, retry=Retry(NoBackoff(), 0))
    yield hole, lambda: client
    client.close()
    hole.close()


def test_a_silent_connection_is_closed_and_made_again(
    black_hole: tuple[BlackHole, Callable[[], redis.Redis]], received: queue.SimpleQueue[str]
) -> None:
    hole, make = black_hole
    listener = ChannelListener(make(), CHANNEL, received.put, ping_seconds=0.05, silent_seconds=0.2)
    listener.start()
    wait_for(lambda: hole.num_taken >= 2, "it connects again")
    listener.close()
    listener.join(20)
    assert not listener.is_alive()


def test_a_message_is_delivered_also_after_an_outage(received: queue.SimpleQueue[str]) -> None:
    valkey = FakeValkey()
    listener = ChannelListener(valkey.client, CHANNEL, received.put, ping_seconds=0.05)
    listener.start()
    wait_for(lambda: valkey.client.publish(CHANNEL, "one") == 1, "the listener subscribes", 20)
    assert received.get(timeout=10) == "one"
    with valkey.away(), pytest.raises(queue.Empty):
        received.get(timeout=0.2)
    wait_for(lambda: bool(valkey.client.publish(CHANNEL, "two")) and received.get(timeout=0.1) == "two", "another", 20)
    listener.close()
    listener.join(20)
    assert not listener.is_alive()


def test_a_text_that_is_no_utf8_is_delivered_with_replacements(received: queue.SimpleQueue[str]) -> None:
    valkey = FakeValkey()
    listener = ChannelListener(valkey.client, CHANNEL, received.put, ping_seconds=0.05)
    listener.start()
    wait_for(lambda: valkey.client.publish(CHANNEL, b"a\xff") == 1, "the listener subscribes", 20)
    assert received.get(timeout=10) == "a\ufffd"
    listener.close()
    listener.join(20)


def test_the_type_error_of_a_closed_socket_is_a_lost_connection(
    received: queue.SimpleQueue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py raises it when it polls a socket that it has closed itself."""
    valkey, failures = FakeValkey(), [TypeError("argument must be an int, or have a fileno() method.")]
    get_message = redis.client.PubSub.get_message

    def fail_once(self: redis.client.PubSub, *arguments: object, **options: object) -> object:
        if failures:
            raise failures.pop()
        return get_message(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(redis.client.PubSub, "get_message", fail_once)
    listener = ChannelListener(valkey.client, CHANNEL, received.put, ping_seconds=0.05)
    listener.start()
    wait_for(lambda: not failures, "the first poll fails")
    wait_for(
        lambda: bool(valkey.client.publish(CHANNEL, "one")) and received.get(timeout=0.1) == "one", "a message", 20
    )
    listener.close()
    listener.join(20)
