"""A follower's queue: what waits, what wakes it, and what a silence leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from api.relay import QUEUE_EVENTS, Relay, Subscription
from core.events import Event, EventKind


@pytest.fixture
def subscription() -> Iterator[Subscription]:
    """Of a relay that has not been started: events come from the test."""
    relay = Relay("redis://127.0.0.1:1", "")
    yield relay.follow("job")
    asyncio.run(relay.close())


def event(seq: int, job: str = "job") -> Event:
    return Event(job=job, attempt=1, seq=seq, kind=EventKind.FRAMES, frames=[b"x"])


def test_an_event_wakes_the_reader_that_waits_for_it(subscription: Subscription) -> None:
    async def run() -> list[int]:
        waiting = asyncio.create_task(subscription.get(20))
        await asyncio.sleep(0)
        subscription.put(event(1))
        subscription.put(event(2))
        return [(await waiting).seq, (await subscription.get(0)).seq]

    assert asyncio.run(run()) == [1, 2]


def test_a_silence_is_told_and_what_comes_later_is_not_lost(subscription: Subscription) -> None:
    async def run() -> int:
        with pytest.raises(TimeoutError):
            await subscription.get(0)
        subscription.put(event(3))
        return (await subscription.get(0)).seq

    assert asyncio.run(run()) == 3


def test_an_event_that_comes_together_with_the_silence_is_there_the_next_time(subscription: Subscription) -> None:
    async def run() -> int:
        waiting = asyncio.create_task(subscription.get(20))
        await asyncio.sleep(0)
        subscription.put(event(4))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return (await subscription.get(0)).seq

    assert asyncio.run(run()) == 4


def test_a_full_queue_keeps_what_it_has_in_order_and_says_so(subscription: Subscription) -> None:
    async def run() -> list[int]:
        for seq in range(QUEUE_EVENTS + 2):
            subscription.put(event(seq))
        return [(await subscription.get(0)).seq for _ in range(QUEUE_EVENTS)]

    assert asyncio.run(run()) == list(range(QUEUE_EVENTS))
    assert subscription.is_overflowed
