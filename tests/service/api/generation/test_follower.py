"""Follower of a job: frames in order and each once, with events lost, late or repeated. On Valkey and Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

import pytest
import redis
from sqlalchemy import Connection

from api.live.follower import Follower, FramesReceived, JobEnded, JobUpdate
from api.services.relay import QUEUE_EVENTS, Relay, Subscription
from core.queue.events import Event, EventKind, encode_event
from core.settings import Settings
from db import jobs
from db.connections import async_database_engine
from db.tables import DEFAULT_TENANT
from tests.support.rows import make_job
from workers.context import Database

JOB = "chatcmpl-1"


def frames(seq: int, *texts: str, attempt: int = 1, job: str = JOB) -> Event:
    return Event(job=job, attempt=attempt, seq=seq, kind=EventKind.FRAMES, frames=[text.encode() for text in texts])


def done(seq: int, attempt: int = 1, job: str = JOB) -> Event:
    return Event(job=job, attempt=attempt, seq=seq, kind=EventKind.DONE)


class World:
    """A relay and a database; the test plays the worker of a job."""

    def __init__(self, settings: Settings, valkey: redis.Redis) -> None:
        self._settings = settings
        self._valkey = valkey

    async def follow(
        self,
        job_id: str,
        play: Callable[[Subscription], Awaitable[None]],
        *,
        next_seq: int = 0,
        from_replay: bool = False,
        silence_seconds: float = 5,
    ) -> list[JobUpdate]:
        """All updates of a follower; `play` runs once it is subscribed."""
        relay = Relay(self._settings.redis_url or "", self._settings.key_prefix)
        await relay.start()
        while not relay.is_connected:
            await asyncio.sleep(0.005)
        database = async_database_engine(self._settings.database_url or "", pool_size=1)
        try:
            async with relay.follow(job_id) as subscription:
                await play(subscription)
                follower = Follower(
                    database,
                    subscription,
                    partial(jobs.find_job, job_id, DEFAULT_TENANT),
                    silence_seconds=silence_seconds,
                    next_seq=next_seq,
                )
                async with asyncio.timeout(20):
                    return [update async for update in follower.updates(from_replay=from_replay)]
        finally:
            await database.dispose()
            await relay.close()

    def remember(self, *events: Event) -> None:
        """Put events on the replay list."""
        for event in events:
            self._valkey.rpush(f"{self._settings.key_prefix}replay:{event.job}", encode_event(event))

    def publish(self, *events: Event) -> None:
        """Publish events on the channels of their jobs."""
        for event in events:
            self._valkey.publish(f"{self._settings.key_prefix}job:{event.job}", encode_event(event))


def texts(updates: list[JobUpdate]) -> list[str]:
    return [frame.decode() for update in updates if isinstance(update, FramesReceived) for frame in update.frames]


def arriving(*events: Event) -> Callable[[Subscription], Awaitable[None]]:
    async def play(subscription: Subscription) -> None:
        for event in events:
            subscription.put(event)

    return play


@pytest.fixture
def world(settings: Settings, valkey: redis.Redis) -> World:
    return World(settings, valkey)


def completed_job(connection: Connection) -> str:
    job_id = make_job(connection)
    jobs.claim_job(job_id, "w", timedelta(seconds=60)).fetch_one(connection)
    ended = jobs.complete_job(
        job_id, 1, answer='{"a": 1}', tokens=(1, 1, 0, 0), provenance=jobs.Provenance(build="b", model_hash=None)
    )
    ended.fetch_one(connection)
    return job_id


async def test_events_come_through_the_broker(world: World) -> None:

    async def play(_: Subscription) -> None:
        world.publish(frames(0, "a", "b"), frames(2, "c"), done(3))

    updates = await world.follow(JOB, play)
    assert texts(updates) == ["a", "b", "c"]
    assert updates[-1] == JobEnded(EventKind.DONE)


async def test_frames_already_seen_are_skipped(world: World) -> None:
    play = arriving(frames(0, "a", "b"), frames(0, "a", "b"), frames(1, "b", "c"), done(3))
    updates = await world.follow(JOB, play)
    assert texts(updates) == ["a", "b", "c"]


async def test_a_gap_is_filled_from_the_replay_list(world: World) -> None:
    world.remember(frames(0, "a"), frames(1, "b"), frames(2, "c"), done(3))
    updates = await world.follow(JOB, arriving(frames(0, "a"), frames(2, "c"), done(3)))
    assert texts(updates) == ["a", "b", "c"]
    assert updates[-1].kind is EventKind.DONE  # type: ignore[union-attr]


async def test_a_gap_that_cannot_be_filled_ends_with_an_error(world: World, database: Database) -> None:
    with database.begin() as connection:
        job_id = make_job(connection)
    play = arriving(frames(0, "a", job=job_id), frames(5, "f", job=job_id))
    updates = await world.follow(job_id, play)
    assert texts(updates) == ["a"]
    ended = updates[-1]
    assert isinstance(ended, JobEnded)
    assert ended.problem is not None
    assert ended.problem.code == "stream_interrupted"


async def test_frames_of_two_attempts_are_never_mixed(world: World) -> None:
    play = arriving(frames(0, "a", "b"), frames(0, "x", "y", "z", attempt=2), done(3, attempt=2))
    updates = await world.follow(JOB, play)
    assert texts(updates) == ["a", "b"]
    assert isinstance(updates[-1], JobEnded)
    assert updates[-1].kind is EventKind.FAILED


async def test_a_new_attempt_is_followed_when_no_frame_of_the_old_one_was_seen(world: World) -> None:
    updates = await world.follow(JOB, arriving(frames(0, "x", attempt=2), done(1, attempt=2)))
    assert texts(updates) == ["x"]


async def test_late_events_of_an_older_attempt_are_dropped(world: World) -> None:
    play = arriving(
        frames(0, "x", attempt=2), frames(1, "old", attempt=1), frames(1, "y", attempt=2), done(2, attempt=2)
    )
    assert texts(await world.follow(JOB, play)) == ["x", "y"]


async def test_a_silence_leads_to_a_read_of_the_row(world: World, database: Database) -> None:
    """The event of the end was lost, the row has the answer."""
    with database.begin() as connection:
        job_id = completed_job(connection)
    updates = await world.follow(job_id, arriving(), silence_seconds=0.1)
    (ended,) = updates
    assert isinstance(ended, JobEnded)
    assert ended.kind is EventKind.DONE
    assert ended.row is not None


async def test_a_late_follower_gets_all_frames_from_the_replay_list(world: World) -> None:
    world.remember(frames(0, "a"), frames(1, "b", "c"), done(3))
    assert texts(await world.follow(JOB, arriving(), from_replay=True)) == ["a", "b", "c"]
    assert texts(await world.follow(JOB, arriving(), from_replay=True, next_seq=2)) == ["c"]


async def test_replayed_and_live_frames_overlap_without_repetition(world: World, database: Database) -> None:
    with database.begin() as connection:
        job_id = make_job(connection)
    world.remember(frames(0, "a", job=job_id), frames(1, "b", job=job_id))
    play = arriving(frames(1, "b", job=job_id), frames(2, "c", job=job_id), done(3, job=job_id))
    assert texts(await world.follow(job_id, play, from_replay=True)) == ["a", "b", "c"]


async def test_a_subscription_that_is_read_too_slowly_ends_with_an_error(world: World) -> None:
    play = arriving(*(frames(n, "x") for n in range(QUEUE_EVENTS + 1)))
    updates = await world.follow(JOB, play)
    assert isinstance(updates[-1], JobEnded)
    assert updates[-1].problem is not None
    assert "too slowly" in updates[-1].problem.message


async def test_the_relay_reconnects_after_the_broker_dropped_it(world: World, valkey: redis.Redis) -> None:
    world.remember(frames(0, "a"), frames(1, "b"))

    async def play(subscription: Subscription) -> None:
        world.publish(frames(0, "a"))
        relay = subscription._relay
        valkey.client_kill_filter(_type="pubsub")
        while relay.is_connected:
            await asyncio.sleep(0.005)
        world.publish(frames(1, "b"))
        while not relay.is_connected:
            await asyncio.sleep(0.005)
        world.publish(frames(2, "c"), done(3))

    assert texts(await world.follow(JOB, play)) == ["a", "b", "c"]


async def test_a_lost_end_is_read_from_the_row_and_the_frames_from_the_replay_list(
    world: World, database: Database
) -> None:
    with database.begin() as connection:
        job_id = completed_job(connection)
    world.remember(frames(0, "a", job=job_id), frames(1, "b", job=job_id), done(2, job=job_id))
    updates = await world.follow(job_id, arriving(frames(0, "a", job=job_id)), silence_seconds=0.05)
    assert texts(updates) == ["a", "b"]
    assert updates[-1].kind is EventKind.DONE  # type: ignore[union-attr]


@pytest.mark.parametrize("from_replay", [False, True])
async def test_a_stream_that_lost_frames_does_not_end_as_done(
    world: World, database: Database, from_replay: bool
) -> None:
    with database.begin() as connection:
        job_id = completed_job(connection)
    next_seq = 1 if from_replay else 0
    play = arriving() if from_replay else arriving(frames(0, "a", job=job_id))
    updates = await world.follow(job_id, play, next_seq=next_seq, from_replay=from_replay, silence_seconds=0.05)
    assert updates[-1].kind is EventKind.FAILED  # type: ignore[union-attr]
    assert updates[-1].problem.code == "stream_interrupted"  # type: ignore[union-attr]
