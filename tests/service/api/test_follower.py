"""Following a job: frames in order, each once, whatever is lost, late or doubled. On a real Valkey and a real row."""

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
    """An api's state, with a job that a test plays the worker of."""

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
        """Everything a follower sees; `play` runs once it is subscribed."""
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
                    return [item async for item in follower.updates(from_replay=from_replay)]
        finally:
            await database.dispose()
            await relay.close()

    def remember(self, *events: Event) -> None:
        """Put events on the replay list."""
        for event in events:
            self._valkey.rpush(f"{self._settings.key_prefix}replay:{event.job}", encode_event(event))

    def publish(self, *events: Event) -> None:
        """Send events to whoever listens."""
        for event in events:
            self._valkey.publish(f"{self._settings.key_prefix}job:{event.job}", encode_event(event))


def texts(items: list[JobUpdate]) -> list[str]:
    return [frame.decode() for item in items if isinstance(item, FramesReceived) for frame in item.frames]


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

    items = await world.follow(JOB, play)
    assert texts(items) == ["a", "b", "c"]
    assert items[-1] == JobEnded(EventKind.DONE)


async def test_what_was_seen_already_is_skipped(world: World) -> None:
    play = arriving(frames(0, "a", "b"), frames(0, "a", "b"), frames(1, "b", "c"), done(3))
    items = await world.follow(JOB, play)
    assert texts(items) == ["a", "b", "c"]


async def test_a_gap_is_filled_from_the_replay_list(world: World) -> None:
    world.remember(frames(0, "a"), frames(1, "b"), frames(2, "c"), done(3))
    items = await world.follow(JOB, arriving(frames(0, "a"), frames(2, "c"), done(3)))
    assert texts(items) == ["a", "b", "c"]
    assert items[-1].kind is EventKind.DONE  # type: ignore[union-attr]


async def test_a_gap_nobody_remembers_is_an_honest_end(world: World, database: Database) -> None:
    with database.begin() as connection:
        job_id = make_job(connection)
    play = arriving(frames(0, "a", job=job_id), frames(5, "f", job=job_id))
    items = await world.follow(job_id, play)
    assert texts(items) == ["a"]
    ended = items[-1]
    assert isinstance(ended, JobEnded)
    assert ended.problem is not None
    assert ended.problem.code == "stream_interrupted"


async def test_two_generations_are_never_spliced(world: World) -> None:
    play = arriving(frames(0, "a", "b"), frames(0, "x", "y", "z", attempt=2), done(3, attempt=2))
    items = await world.follow(JOB, play)
    assert texts(items) == ["a", "b"]
    assert isinstance(items[-1], JobEnded)
    assert items[-1].kind is EventKind.FAILED


async def test_a_new_attempt_is_followed_when_nothing_was_shown_of_the_old_one(world: World) -> None:
    items = await world.follow(JOB, arriving(frames(0, "x", attempt=2), done(1, attempt=2)))
    assert texts(items) == ["x"]


async def test_late_events_of_an_older_attempt_are_dropped(world: World) -> None:
    play = arriving(
        frames(0, "x", attempt=2), frames(1, "old", attempt=1), frames(1, "y", attempt=2), done(2, attempt=2)
    )
    assert texts(await world.follow(JOB, play)) == ["x", "y"]


async def test_a_silence_makes_it_look_at_the_row(world: World, database: Database) -> None:
    """The end was lost with the broker; the answer was not."""
    with database.begin() as connection:
        job_id = completed_job(connection)
    items = await world.follow(job_id, arriving(), silence_seconds=0.1)
    (ended,) = items
    assert isinstance(ended, JobEnded)
    assert ended.kind is EventKind.DONE
    assert ended.row is not None


async def test_a_late_reader_gets_everything_from_the_replay_list(world: World) -> None:
    world.remember(frames(0, "a"), frames(1, "b", "c"), done(3))
    assert texts(await world.follow(JOB, arriving(), from_replay=True)) == ["a", "b", "c"]
    assert texts(await world.follow(JOB, arriving(), from_replay=True, next_seq=2)) == ["c"]


async def test_replay_and_live_overlap_without_doubling(world: World, database: Database) -> None:
    with database.begin() as connection:
        job_id = make_job(connection)
    world.remember(frames(0, "a", job=job_id), frames(1, "b", job=job_id))
    play = arriving(frames(1, "b", job=job_id), frames(2, "c", job=job_id), done(3, job=job_id))
    assert texts(await world.follow(job_id, play, from_replay=True)) == ["a", "b", "c"]


async def test_a_reader_that_does_not_keep_up_is_told_so(world: World) -> None:
    play = arriving(*(frames(n, "x") for n in range(QUEUE_EVENTS + 1)))
    items = await world.follow(JOB, play)
    assert isinstance(items[-1], JobEnded)
    assert items[-1].problem is not None
    assert "too slowly" in items[-1].problem.message


async def test_the_relay_comes_back_after_the_broker_dropped_it(world: World, valkey: redis.Redis) -> None:
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


async def test_an_end_that_was_not_told_is_read_and_the_frames_before_it_come_from_the_replay_list(
    world: World, database: Database
) -> None:
    with database.begin() as connection:
        job_id = completed_job(connection)
    world.remember(frames(0, "a", job=job_id), frames(1, "b", job=job_id), done(2, job=job_id))
    items = await world.follow(job_id, arriving(frames(0, "a", job=job_id)), silence_seconds=0.05)
    assert texts(items) == ["a", "b"]
    assert items[-1].kind is EventKind.DONE  # type: ignore[union-attr]


@pytest.mark.parametrize("from_replay", [False, True])
async def test_a_stream_whose_rest_is_nowhere_does_not_end_as_if_it_were_whole(
    world: World, database: Database, from_replay: bool
) -> None:
    with database.begin() as connection:
        job_id = completed_job(connection)
    next_seq = 1 if from_replay else 0
    play = arriving() if from_replay else arriving(frames(0, "a", job=job_id))
    items = await world.follow(job_id, play, next_seq=next_seq, from_replay=from_replay, silence_seconds=0.05)
    assert items[-1].kind is EventKind.FAILED  # type: ignore[union-attr]
    assert items[-1].problem.code == "stream_interrupted"  # type: ignore[union-attr]
