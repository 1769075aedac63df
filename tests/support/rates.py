"""Checks of the rate limiter and the stream limiter, for a Valkey in the process and for a real one."""

from __future__ import annotations

from typing import Literal

import pytest

from api.services.rate_limiter import Level, Rate, RateLimiter
from api.services.stream_limiter import NoFreeStream, StreamLimiter
from core.settings import Settings
from tests.support.clock import Clock

NOWHERE = "redis://127.0.0.1:9/0"  # nothing listens there, so that a limiter keeps its limits in the process


async def take_all(
    url: str, steps: list[tuple[float, int]], limit: int = 60, per: Literal["minute", "hour"] = "minute"
) -> list[Level]:
    """Return the level after each step, which waits so many seconds and then takes so much."""
    clock = Clock()
    limiter = RateLimiter(url, "test:", clock)
    levels = []
    for seconds, cost in steps:
        clock.now += seconds
        levels.append(await limiter.take(Rate(owner="key", kind="requests", limit=limit, per=per), cost))
    await limiter.close()
    return levels


async def check_ten_thousand_calls(url: str) -> None:
    """Of ten thousand calls at once, exactly the limit is taken, and another owner is not affected."""
    limit = Settings().calls_per_minute
    limiter = RateLimiter(url, "test:", Clock())
    levels = [await limiter.take(Rate(owner="greedy", kind="calls", limit=limit), 1) for _ in range(10_000)]
    assert sum(level.is_taken for level in levels) == limit
    assert 0 < levels[-1].retry_seconds <= 120
    other = await limiter.take(Rate(owner="other", kind="calls", limit=limit), 1)
    assert (other.is_taken, other.remaining) == (True, limit - 1)
    await limiter.close()


async def check_streams_over_processes(url: str) -> None:
    """Two limiters, as of two processes, share the limit of a key; streams of an ended process expire."""
    clock = Clock()
    limiters = [RateLimiter(url, "test:") for _ in range(2)]
    one, two = (StreamLimiter(limiter.client, "test:", clock) for limiter in limiters)
    async with one.hold("a", 2), two.hold("a", 2), two.hold("b", 2):
        for streams in (one, two):
            with pytest.raises(NoFreeStream):
                await streams.hold("a", 2).__aenter__()
    async with two.hold("a", 1):
        clock.now += 3600  # as if its process had ended: its entry is deleted
        async with one.hold("a", 1):
            pass
    for limiter in limiters:
        await limiter.close()
