"""`wait_for_outcome` reads the row after an event, and at intervals without one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from api.live.outcome import wait_for_outcome
from api.services.relay import Relay, Subscription
from api.services.waiters import Waiters
from core.errors import ApiError, Problem
from core.queue.events import outcome_event

NEVER = 3600.0


class Row:
    """A row without an outcome for the first `num_empty` reads."""

    def __init__(self, num_empty: int = 0) -> None:
        self.num_empty = num_empty
        self.num_reads = 0

    async def read(self) -> str | None:
        self.num_reads += 1
        return None if self.num_reads <= self.num_empty else "outcome"


@pytest.fixture
def waiters() -> Waiters:
    return Waiters()


@pytest.fixture
async def subscription(waiters: Waiters) -> AsyncIterator[Subscription]:
    """A subscription without a broker; the test puts events into it."""
    relay = Relay("redis://127.0.0.1:1", "", waiters)
    async with relay.follow("row", "key") as subscription:
        yield subscription
    await relay.close()


async def test_the_row_is_read_when_its_event_arrives(subscription: Subscription) -> None:
    row = Row()
    subscription.put(outcome_event("row"))
    assert await wait_for_outcome(subscription, row.read, 20, fallback_seconds=NEVER) == "outcome"
    assert row.num_reads == 1


async def test_an_event_before_the_outcome_is_visible_does_not_end_the_wait(subscription: Subscription) -> None:
    row = Row(num_empty=1)
    subscription.put(outcome_event("row"))
    subscription.put(outcome_event("row"))
    assert await wait_for_outcome(subscription, row.read, 20, fallback_seconds=NEVER) == "outcome"


async def test_without_an_event_the_row_is_read_at_intervals(subscription: Subscription) -> None:
    row = Row(num_empty=2)
    assert await wait_for_outcome(subscription, row.read, 20, fallback_seconds=0.01) == "outcome"
    assert row.num_reads == 3


async def test_a_wait_without_an_outcome_times_out_after_a_last_read(subscription: Subscription) -> None:
    row, began = Row(num_empty=1000), time.monotonic()
    with pytest.raises(TimeoutError):
        await wait_for_outcome(subscription, row.read, 0.05, fallback_seconds=NEVER)
    assert row.num_reads == 1
    assert time.monotonic() - began < 5


async def test_a_wait_that_is_ended_raises_the_reason(subscription: Subscription, waiters: Waiters) -> None:
    waiters.end(Problem(status=401, message="The key is revoked.", code="invalid_api_key"), {"key"})
    with pytest.raises(ApiError) as raised:
        await wait_for_outcome(subscription, Row().read, 20)
    assert raised.value.problem.status == 401
