"""Hints over a channel: heard, and heard again after the broker or the way to it was gone."""

from __future__ import annotations

import queue

import pytest
import redis

from tests.support.stack import wait_for
from workers.consumers.channel_listener import ChannelListener

CHANNEL = "listener-test"


@pytest.fixture
def heard() -> queue.SimpleQueue[str]:
    return queue.SimpleQueue()


def say(valkey: redis.Redis, text: str) -> None:
    wait_for(lambda: valkey.publish(CHANNEL, text) == 1, "somebody listens", 20)


def test_what_is_said_is_heard_also_after_the_connection_was_cut(
    valkey: redis.Redis, heard: queue.SimpleQueue[str]
) -> None:
    listener = ChannelListener(valkey, CHANNEL, heard.put, ping_seconds=0.2)
    listener.start()
    say(valkey, "one")
    assert heard.get(timeout=10) == "one"
    valkey.client_kill_filter(_type="pubsub")
    say(valkey, "two")
    assert heard.get(timeout=10) == "two"
    listener.close()
    listener.join(20)
