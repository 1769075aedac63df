"""Channel listener on a real Valkey: messages arrive, also after a lost connection."""

from __future__ import annotations

import queue

import pytest
import redis

from tests.support.stack import wait_for
from workers.runtime.channel_listener import ChannelListener

CHANNEL = "listener-test"


@pytest.fixture
def received() -> queue.SimpleQueue[str]:
    return queue.SimpleQueue()


def test_messages_arrive_also_after_the_connection_was_cut(
    valkey: redis.Redis, received: queue.SimpleQueue[str]
) -> None:
    listener = ChannelListener(valkey, CHANNEL, received.put, ping_seconds=0.2)
    listener.start()
    wait_for(lambda: valkey.publish(CHANNEL, "one") == 1, "the listener subscribes", 20)
    assert received.get(timeout=10) == "one"
    valkey.client_kill_filter(_type="pubsub")
    wait_for(lambda: bool(valkey.publish(CHANNEL, "two")) and received.get(timeout=0.1) == "two", "another message", 20)
    listener.close()
    listener.join(20)
