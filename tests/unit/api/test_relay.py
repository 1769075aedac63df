"""Relay: the queue of a follower, and events, hints and outages on a Valkey in the process."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest

from api.services.relay import QUEUE_EVENTS, Relay, Subscription
from core.queue.events import Event, EventKind, encode_event
from tests.support.fake_valkey import FakeValkey

PREFIX = "p:"


def event(seq: int, job: str = "job") -> Event:
    return Event(job=job, attempt=1, seq=seq, kind=EventKind.FRAMES, frames=[b"x"])


@pytest.fixture
async def subscription() -> AsyncIterator[Subscription]:
    """A follower of a relay that is not started; the test puts the events."""
    relay = Relay("redis://127.0.0.1:1", "")
    yield relay.follow("job")
    await relay.close()


async def test_an_event_wakes_its_subscription(subscription: Subscription) -> None:
    waiting = asyncio.create_task(subscription.get(20))
    await asyncio.sleep(0)
    subscription.put(event(1))
    subscription.put(event(2))
    assert [(await waiting).seq, (await subscription.get(0)).seq] == [1, 2]


async def test_an_event_that_comes_after_a_timeout_is_not_lost(subscription: Subscription) -> None:
    with pytest.raises(TimeoutError):
        await subscription.get(0)
    subscription.put(event(3))
    assert (await subscription.get(0)).seq == 3


async def test_an_event_that_comes_while_the_read_is_cancelled_is_there_the_next_time(
    subscription: Subscription,
) -> None:
    waiting = asyncio.create_task(subscription.get(20))
    await asyncio.sleep(0)
    subscription.put(event(4))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await subscription.get(0)).seq == 4


async def test_a_full_queue_keeps_what_it_has_in_order_and_is_marked(subscription: Subscription) -> None:
    for seq in range(QUEUE_EVENTS + 2):
        subscription.put(event(seq))
    assert [(await subscription.get(0)).seq for _ in range(QUEUE_EVENTS)] == list(range(QUEUE_EVENTS))
    assert subscription.is_overflowed


@pytest.fixture
async def relay(fake_valkey: FakeValkey) -> AsyncIterator[Relay]:
    relay = Relay("redis://fake", PREFIX, ping_seconds=0.05)
    await relay.start()
    assert await relay.wait_connected(5)
    yield relay
    await relay.close()


@pytest.mark.parametrize("num_turns", range(8))
async def test_a_relay_ends_at_any_moment_of_its_start(num_turns: int, fake_valkey: FakeValkey) -> None:
    relay = Relay("redis://fake", PREFIX)
    await relay.start()
    for _ in range(num_turns):
        await asyncio.sleep(0)
    _, unfinished = await asyncio.wait([asyncio.create_task(relay.close())], timeout=5)
    assert not unfinished


async def reconnected(relay: Relay) -> None:
    """Wait until the relay has noticed that its connection is broken and has made another."""
    async with asyncio.timeout(10):
        while relay.is_connected:
            await asyncio.sleep(0.005)
    assert await relay.wait_connected(10)


def publish(fake: FakeValkey, *events: Event) -> None:
    for each in events:
        fake.client.publish(f"{PREFIX}job:{each.job}", encode_event(each))


async def test_each_follower_of_a_job_gets_its_events_and_no_other_jobs(relay: Relay, fake_valkey: FakeValkey) -> None:
    async with relay.follow("job") as one, relay.follow("job") as two, relay.follow("other") as other:
        publish(fake_valkey, event(1), event(2, "other"), event(3))
        for follower in (one, two):
            assert [(await follower.get(5)).seq, (await follower.get(5)).seq] == [1, 3]
        assert (await other.get(5)).seq == 2


async def test_a_channel_is_left_with_its_last_follower(relay: Relay, fake_valkey: FakeValkey) -> None:
    channel = f"{PREFIX}job:job"
    async with relay.follow("job"):
        async with relay.follow("job"):
            pass
        assert fake_valkey.client.pubsub_numsub(channel) == [(channel.encode(), 1)]
    assert fake_valkey.client.pubsub_numsub(channel) == [(channel.encode(), 0)]


async def test_an_event_that_cannot_be_parsed_is_dropped(relay: Relay, fake_valkey: FakeValkey) -> None:
    async with relay.follow("job") as follower:
        fake_valkey.client.publish(f"{PREFIX}job:job", b"\xff not an event")
        publish(fake_valkey, event(1))
        assert (await follower.get(5)).seq == 1


async def test_the_replay_list_is_returned_oldest_first(relay: Relay, fake_valkey: FakeValkey) -> None:
    for seq in (1, 2):
        fake_valkey.client.rpush(f"{PREFIX}replay:job", encode_event(event(seq)))
    assert [each.seq for each in await relay.replay("job")] == [1, 2]
    assert await relay.replay("other") == []
    with fake_valkey.away():
        assert await relay.replay("job") == []


async def test_hints_are_published_while_connected(relay: Relay, fake_valkey: FakeValkey) -> None:
    hints = fake_valkey.client.pubsub(ignore_subscribe_messages=True)
    hints.subscribe(f"{PREFIX}cancel", f"{PREFIX}watch")
    await relay.send_cancel("a")
    await relay.send_watch("b")
    messages = [message for _ in range(4) if (message := hints.get_message(timeout=0.1)) is not None]
    assert [(each["channel"], each["data"]) for each in messages] == [
        (f"{PREFIX}cancel".encode(), b"a"),
        (f"{PREFIX}watch".encode(), b"b"),
    ]
    hints.close()


async def test_a_follower_that_comes_while_the_relay_connects_gets_its_events(
    fake_valkey: FakeValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay("redis://fake", PREFIX, ping_seconds=0.05)
    pubsub = relay._listener.pubsub()
    subscribe, connecting, has_follower = pubsub.subscribe, asyncio.Event(), asyncio.Event()

    async def subscribe_late(*channels: str) -> None:
        connecting.set()
        await has_follower.wait()
        await subscribe(*channels)

    monkeypatch.setattr(pubsub, "subscribe", subscribe_late)
    monkeypatch.setattr(relay._listener, "pubsub", lambda: pubsub)
    await relay.start()
    try:
        await connecting.wait()
        async with relay.follow("job") as follower:
            has_follower.set()
            assert await relay.wait_connected(5)
            publish(fake_valkey, event(1))
            assert (await follower.get(0.5)).seq == 1
    finally:
        await asyncio.sleep(0.02)  # as above
        await relay.close()


async def test_an_outage_ends_with_every_follower_subscribed_again(relay: Relay, fake_valkey: FakeValkey) -> None:
    async with relay.follow("before") as before:
        with fake_valkey.away():
            while relay.is_connected:
                await asyncio.sleep(0.005)
            assert not await relay.wait_connected(0.05)
            during = await relay.follow("during").__aenter__()
            await relay.send_cancel("job")
        assert await relay.wait_connected(5)
        publish(fake_valkey, event(1, "before"), event(2, "during"))
        assert [(await each.get(5)).seq for each in (before, during)] == [1, 2]
        await during.__aexit__(None, None, None)


@pytest.mark.parametrize("error", [RuntimeError("the handler is closed"), AttributeError("writelines"), KeyError()])
async def test_a_connection_is_made_again_whatever_error_it_raises(
    error: Exception, relay: Relay, fake_valkey: FakeValkey
) -> None:
    """F23: a closed transport raises errors that no library translates."""

    async def fail(*_: object, **__: object) -> None:
        raise error

    relay._pubsub.get_message = fail
    fake_valkey.client.publish(f"{PREFIX}relay", "x")  # after this message, the next one is waited for
    await reconnected(relay)


async def test_a_subscription_on_a_connection_that_has_just_broken_is_made_later(
    relay: Relay, fake_valkey: FakeValkey
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("the handler is closed")

    relay._pubsub.subscribe = fail
    async with relay.follow("job") as follower:
        with fake_valkey.away():
            while relay.is_connected:
                await asyncio.sleep(0.005)
        assert await relay.wait_connected(5)
        publish(fake_valkey, event(7))
        assert (await follower.get(5)).seq == 7


async def test_a_broker_that_accepts_and_never_answers_delays_no_follower() -> None:
    """F19: nor a hint, nor a read of the replay list."""
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
