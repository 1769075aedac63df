"""Publisher on a real Valkey."""

from __future__ import annotations

import redis

from core.queue.events import Event, EventKind, decode_event
from tests.support.stack import wait_for
from workers.runtime.publisher import Publisher


def test_events_can_be_replayed_for_a_while(valkey: redis.Redis) -> None:
    publisher = Publisher(valkey, "p:")
    publisher.publish(Event(job="a", attempt=1, seq=0, kind=EventKind.FRAMES, frames=[b"a0", b"a1"]))
    publisher.publish(Event(job="a", attempt=1, seq=2, kind=EventKind.FRAMES, frames=[b"a2"]))
    publisher.publish(Event(job="a", attempt=1, seq=3, kind=EventKind.DONE))
    publisher.close()
    stored = [decode_event(data) for data in valkey.lrange("p:replay:a", 0, -1)]  # type: ignore[arg-type]
    assert [frame for event in stored for frame in event.frames] == [b"a0", b"a1", b"a2"]
    assert stored[-1].kind is EventKind.DONE
    assert 0 < valkey.ttl("p:replay:a") <= 300


def test_events_that_come_late_keep_those_before_them(valkey: redis.Redis) -> None:
    publisher = Publisher(valkey, "p:")
    publisher.publish(Event(job="slow", attempt=1, seq=0, kind=EventKind.FRAMES, frames=[b"a0"]))
    wait_for(lambda: valkey.exists("p:replay:slow") == 1, "the first event is kept")
    valkey.expire("p:replay:slow", 20)  # nearly five minutes later
    publisher.publish(Event(job="slow", attempt=1, seq=1, kind=EventKind.FRAMES, frames=[b"a1"]))
    publisher.close()
    assert valkey.llen("p:replay:slow") == 2
    assert valkey.ttl("p:replay:slow") > 200
