"""Relay on a real Valkey: a connection that is only half there, and one that the broker closes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from api.services.relay import Relay
from core.queue.events import Event, EventKind, encode_event
from core.settings import Settings
from tests.faults.proxy import Proxy


def event(seq: int, job: str = "job") -> Event:
    return Event(job=job, attempt=1, seq=seq, kind=EventKind.FRAMES, frames=[b"x"])


async def connected(relay: Relay, *, is_connected: bool = True) -> None:
    async with asyncio.timeout(20):
        while relay.is_connected != is_connected:
            await asyncio.sleep(0.01)


@pytest.fixture
def proxy(settings: Settings) -> Iterator[Proxy]:
    """A proxy in front of Valkey."""
    with Proxy(Path((settings.redis_url or "").removeprefix("unix://").partition("?")[0])) as proxy:
        yield proxy


async def test_a_half_open_connection_is_detected_and_replaced(proxy: Proxy, valkey: redis.Redis) -> None:
    """F20, F23: with every follower; a connection that is only quiet is kept."""
    relay = Relay(f"redis://127.0.0.1:{proxy.port}/0", "", ping_seconds=0.1)
    await relay.start()
    await connected(relay)
    async with relay.follow("job") as subscription:
        await asyncio.sleep(0.5)
        assert relay.is_connected, "it answers pings"
        proxy.strand()
        await connected(relay, is_connected=False)
        assert await relay.wait_connected(20)
        while valkey.publish("job:job", encode_event(event(5))) == 0:
            await asyncio.sleep(0.01)
        assert (await subscription.get(20)).seq == 5
    await relay.close()


async def test_a_follower_gets_events_after_the_broker_has_closed_the_connection(
    settings: Settings, valkey: redis.Redis
) -> None:
    relay = Relay(settings.redis_url or "", "")
    await relay.start()
    await connected(relay)
    async with relay.follow("job") as subscription:
        valkey.client_kill_filter(_type="pubsub")
        await connected(relay, is_connected=False)
        await connected(relay)
        valkey.publish("job:job", encode_event(event(7)))
        assert (await subscription.get(20)).seq == 7
    await relay.close()
