"""Publisher: merging of events, and a broker that is away."""

from __future__ import annotations

from collections import defaultdict

import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.queue.events import Event, EventKind
from workers.runtime.publisher import Publisher, merge


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


def test_a_broker_that_is_away_costs_events_and_nothing_else() -> None:
    client = redis.Redis(unix_socket_path="/nowhere.sock", retry=Retry(NoBackoff(), 0))
    publisher = Publisher(client, "p:")
    publisher.publish(Event(job="a", attempt=1, seq=0, kind=EventKind.DONE))
    publisher.close()
    assert publisher.num_dropped == 1
