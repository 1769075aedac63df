"""Publisher: merging of events, and a broker that is away."""

from __future__ import annotations

from collections import defaultdict

import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.queue.events import Event, EventKind, decode_event
from tests.support.fake_valkey import FakeValkey
from tests.support.stack import wait_for
from workers.runtime.publisher import REPLAY_EVENTS, REPLAY_SECONDS, Publisher, merge


def numbered(pushes: list[tuple[str, int, bool]]) -> list[Event]:
    """Events of several jobs: (job, frames, is it over)."""
    seqs: dict[str, int] = defaultdict(int)
    over: set[str] = set()
    events = []
    for job, number, is_end in pushes:
        if job in over:
            continue
        kind = EventKind.DONE if is_end else EventKind.FRAMES
        frames = [] if is_end else [f"{job}{seqs[job] + n}".encode() for n in range(number)]
        events.append(Event(job=job, attempt=1, seq=seqs[job], kind=kind, frames=frames))
        seqs[job] += len(frames)
        if is_end:
            over.add(job)
    return events


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.booleans())))
def test_merging_keeps_every_frame_in_order_and_the_end_last(pushes: list[tuple[str, int, bool]]) -> None:
    events = numbered(pushes)
    merged = merge(events)
    for job in "abc":
        before = [frame for event in events if event.job == job for frame in event.frames]
        seen: list[bytes] = []
        of_job = [event for event in merged if event.job == job]
        for event in of_job:
            assert event.seq == len(seen)
            seen += event.frames
        assert seen == before
        assert [event.kind for event in of_job if event.kind is not EventKind.FRAMES] == [
            event.kind for event in events if event.job == job and event.kind is not EventKind.FRAMES
        ]
        assert all(event.kind is EventKind.FRAMES for event in of_job[:-1])


def test_a_broker_that_is_away_loses_only_events() -> None:
    client = redis.Redis(unix_socket_path="/nowhere.sock", retry=Retry(NoBackoff(), 0))
    publisher = Publisher(client, "p:")
    publisher.publish(Event(job="a", attempt=1, seq=0, kind=EventKind.DONE))
    publisher.close()
    assert publisher.num_dropped == 1


def publish_all(valkey: FakeValkey, *events: Event) -> Publisher:
    publisher = Publisher(valkey.client, "p:")
    for event in events:
        publisher.publish(event)
    publisher.close()
    return publisher


def test_an_event_is_published_and_kept_for_a_replay() -> None:
    valkey = FakeValkey()
    subscription = valkey.client.pubsub(ignore_subscribe_messages=True)
    subscription.subscribe("p:job:a")
    publish_all(valkey, *numbered([("a", 2, False), ("a", 0, True)]))
    messages = [message for _ in range(3) if (message := subscription.get_message(timeout=0.1)) is not None]
    stored = valkey.client.lrange("p:replay:a", 0, -1)
    assert [message["data"] for message in messages] == stored
    assert [frame for data in stored for frame in decode_event(data).frames] == [b"a0", b"a1"]
    assert decode_event(stored[-1]).kind is EventKind.DONE
    assert 0 < valkey.client.ttl("p:replay:a") <= REPLAY_SECONDS
    subscription.close()


def test_the_replay_list_of_a_long_job_is_cut_to_its_newest_events() -> None:
    valkey = FakeValkey()
    key = "p:replay:a"
    valkey.client.rpush(key, *[b"old"] * (REPLAY_EVENTS + 10))
    publish_all(valkey, Event(job="a", attempt=1, seq=256, kind=EventKind.FRAMES, frames=[b"x"]))
    assert valkey.client.llen(key) == REPLAY_EVENTS
    assert decode_event(valkey.client.lindex(key, -1)).seq == 256


def test_events_of_an_outage_are_counted_and_later_ones_are_sent() -> None:
    valkey = FakeValkey()
    publisher = Publisher(valkey.client, "p:")
    with valkey.away():
        publisher.publish(Event(job="a", attempt=1, seq=0, kind=EventKind.FRAMES, frames=[b"lost"]))
        wait_for(lambda: publisher.num_dropped == 1, "it is dropped", 20)
    publisher.publish(Event(job="a", attempt=1, seq=1, kind=EventKind.DONE))
    publisher.close()
    assert [decode_event(data).seq for data in valkey.client.lrange("p:replay:a", 0, -1)] == [1]
