"""Stream limiter: over all processes on a Valkey in the process, and in one process without any."""

from __future__ import annotations

import pytest

from api.services.rate_limiter import RateLimiter
from api.services.stream_limiter import NoFreeStream, StreamLimiter
from tests.support.clock import Clock
from tests.support.fake_valkey import FakeValkey
from tests.support.rates import NOWHERE, check_streams_over_processes


async def test_a_key_holds_no_more_streams_than_it_may_over_all_processes(fake_valkey: FakeValkey) -> None:
    await check_streams_over_processes("redis://fake")


async def test_a_stream_of_a_process_that_ended_expires(fake_valkey: FakeValkey) -> None:
    clock = Clock()
    limiter = RateLimiter("redis://fake", "test:")
    dead, alive = (StreamLimiter(limiter.client, "test:", clock) for _ in range(2))
    await dead.hold("a", 1).__aenter__()
    with pytest.raises(NoFreeStream):
        await alive.hold("a", 1).__aenter__()
    clock.now += 3600
    async with alive.hold("a", 1):
        pass
    await limiter.close()


async def test_streams_are_counted_in_the_process_while_valkey_is_away(fake_valkey: FakeValkey) -> None:
    limiter = RateLimiter("redis://fake", "test:")
    streams = StreamLimiter(limiter.client, "test:")
    with fake_valkey.away():
        async with streams.hold("a", 1):
            with pytest.raises(NoFreeStream):
                await streams.hold("a", 1).__aenter__()
        async with streams.hold("a", 1):
            pass
    await limiter.close()


async def test_without_valkey_a_process_counts_its_own_streams() -> None:
    limiter = RateLimiter(NOWHERE, "test:")
    streams = StreamLimiter(limiter.client, "test:")
    async with streams.hold("a", 1):
        with pytest.raises(NoFreeStream):
            await streams.hold("a", 1).__aenter__()
    async with streams.hold("a", 1):
        pass
    await limiter.close()
