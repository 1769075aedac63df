"""A follower's queue: what waits, what wakes it, and what a silence leaves behind."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from api.services.relay import QUEUE_EVENTS, Relay, Subscription
from core.queue.events import Event, EventKind, encode_event
from core.settings import Settings
from tests.faults.proxy import Proxy


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


async def connected(relay: Relay, *, is_connected: bool = True) -> None:
    async with asyncio.timeout(20):
        while relay.is_connected != is_connected:
            await asyncio.sleep(0.01)


@pytest.fixture
def proxy(settings: Settings) -> Iterator[Proxy]:
    """Before the Valkey."""
    with Proxy(Path((settings.redis_url or "").removeprefix("unix://").partition("?")[0])) as proxy:
        yield proxy


def test_a_connection_that_is_only_half_there_is_noticed_and_made_again(proxy: Proxy, valkey: redis.Redis) -> None:
    """F20, F23: with everybody who follows; while it is quiet, nothing is noticed."""

    async def run() -> None:
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

    asyncio.run(run())


@pytest.mark.parametrize("error", [RuntimeError("the handler is closed"), AttributeError("writelines"), KeyError()])
def test_whatever_a_broken_connection_says_it_is_made_again(
    error: Exception, settings: Settings, valkey: redis.Redis
) -> None:
    """F23: a closed transport raises what no library translates."""

    async def run() -> None:
        relay = Relay(settings.redis_url or "", "")
        await relay.start()
        await connected(relay)

        async def fail(*_: object, **__: object) -> None:
            raise error

        relay._pubsub.get_message = fail
        while not valkey.publish("relay", "whatever"):  # behind it, the next one is waited for
            await asyncio.sleep(0.01)
        await connected(relay, is_connected=False)
        await connected(relay)
        await relay.close()

    asyncio.run(run())


def test_who_subscribes_on_a_connection_that_has_just_broken_hears_of_it_later(
    settings: Settings, valkey: redis.Redis
) -> None:
    async def run() -> None:
        relay = Relay(settings.redis_url or "", "")
        await relay.start()
        await connected(relay)

        async def fail(*_: object) -> None:
            raise RuntimeError("the handler is closed")

        relay._pubsub.subscribe = fail
        async with relay.follow("job") as subscription:
            valkey.client_kill_filter(_type="pubsub")
            await connected(relay, is_connected=False)
            await connected(relay)
            valkey.publish("job:job", encode_event(event(7)))
            assert (await subscription.get(20)).seq == 7
        await relay.close()

    asyncio.run(run())


def test_a_broker_that_accepts_and_says_nothing_holds_nobody_up() -> None:
    """F19: neither followers, nor hints, nor who asks for what was said so far."""

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            relay = Relay(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", "")
            await relay.start()
            await asyncio.sleep(0.1)
            began = time.monotonic()
            async with relay.follow("job"):
                assert not await relay.wait_connected(0.1)
            assert time.monotonic() - began < 0.5
            await relay.send_cancel("job")
            assert await relay.replay("job") == []
            assert time.monotonic() - began < 3
            await relay.close()

    asyncio.run(run())
