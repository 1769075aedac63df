"""The stream of all batches of a tenant, on rows that the test changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.feed import BatchFeeds
from api.http.sse import PING
from api.live.shutdown import SHUTTING_DOWN
from api.routes.batch_feed import batch_changes
from api.services.key_ring import not_valid
from api.services.model_states import ModelStates
from api.services.waiters import Waiters
from core.models.live_catalog import LiveCatalog
from core.settings import Settings
from core.states import BatchState
from db import batch_control, batches
from db.connections import async_database_engine
from db.tables import DEFAULT_TENANT
from tests.support.guarded import Guarded
from tests.support.rows import make_batch, make_running_batch
from tests.support.stack import batch_lines, start_batch, write_lines
from workers.context import Database

POLL_SECONDS = 0.02


class Follower:
    """Reads a stream in the background of the test."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._read: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        """The next event: a batch, or an error."""
        async with asyncio.timeout(10):
            while not self._read:
                data = await anext(self._stream)
                self._read = [_parse(block) for block in data.decode().split("\n\n") if block and block[0] != ":"]
        return self._read.pop(0)

    async def until(self, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event that is wanted."""
        while not is_wanted(found := await self.next()):
            pass
        return found


def _parse(block: str) -> dict[str, Any]:
    *head, data = block.split("\n")
    parsed: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert head == ([] if "error" in parsed else ["event: batch"])
    return parsed


class Streams:
    """Streams of feeds that poll without a pause worth mentioning."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        states = ModelStates(engine, LiveCatalog(settings.models_dir), settings)
        self.feeds = BatchFeeds(engine, states, POLL_SECONDS)
        self.waiters = Waiters()
        self.statements: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *call: self.statements.append(call[2]))

    @asynccontextmanager
    async def follow(
        self, tenant: str = DEFAULT_TENANT, *, key_id: str | None = None, keep_alive_seconds: float = 60
    ) -> AsyncIterator[Follower]:
        stream = batch_changes(self.feeds, self.waiters, tenant, key_id, keep_alive_seconds)
        async with aclosing(stream):  # type: ignore[type-var]  # it is a generator
            assert await anext(stream) == PING
            yield Follower(stream)


@pytest.fixture
async def streams(settings: Settings, database: Database) -> AsyncIterator[Streams]:
    engine = async_database_engine(settings.database_url or "", pool_size=2)
    yield Streams(engine, settings)
    await engine.dispose()


def end(database: Database, batch_id: str) -> None:
    with database.begin() as connection:
        connection.execute(
            text("UPDATE batches SET status = 'completed', completed_at = now(), updated_at = now() WHERE id = :id"),
            {"id": batch_id},
        )


async def test_a_stream_begins_with_what_runs_and_follows_every_change(streams: Streams, database: Database) -> None:
    with database.begin() as connection:
        old = make_batch(connection)
        connection.execute(
            text(
                "UPDATE batches SET status = 'failed', failed_at = now(), updated_at = now() - interval '1 h' "
                "WHERE id = :id"
            ),
            {"id": old},
        )
        batch_id, (shard,) = make_running_batch(connection, [4])
    async with streams.follow() as follower:
        first = await follower.next()
        assert (first["id"], first["object"], first["status"]) == (batch_id, "batch", "in_progress")

        with database.begin() as connection:
            made = make_batch(connection)
        created = await follower.next()
        assert (created["id"], created["status"], created["input_file_name"]) == (made, "validating", "in.jsonl")

        with database.begin() as connection:
            batch_control.pause(batch_id, DEFAULT_TENANT).fetch_one(connection)
        assert (await follower.next())["paused_at"] is not None
        with database.begin() as connection:
            batch_control.resume(batch_id, DEFAULT_TENANT).fetch_one(connection)
            batch_control.set_urgency(batch_id, DEFAULT_TENANT, priority=7, window=None).fetch_one(connection)
        resumed = await follower.next()
        assert (resumed["id"], resumed["paused_at"], resumed["priority"]) == (batch_id, None, 7)

        with database.begin() as connection:  # a worker takes the shard and writes results; no row of `batches` changes
            connection.execute(
                text(
                    "UPDATE shards SET state = 'running', owner = 'w', lease_until = now() + interval '1 h', "
                    "lines_completed = 3, lines_failed = 1 WHERE id = :id"
                ),
                {"id": shard},
            )
        counted = await follower.until(lambda batch: batch["request_counts"]["completed"] == 3)
        assert counted["request_counts"] == {"total": 4, "completed": 3, "failed": 1}

        with database.begin() as connection:
            batches.move(batch_id, BatchState.CANCELLING).fetch_one(connection)
        assert (await follower.until(lambda batch: batch["id"] == batch_id))["status"] == "cancelling"

        with database.begin() as connection:
            batch_control.set_metadata(old, DEFAULT_TENANT, '{"name": "renamed"}').fetch_one(connection)
        assert (await follower.until(lambda batch: batch["id"] == old))["metadata"] == {"name": "renamed"}


async def test_a_batch_that_ends_is_passed_on_though_its_transaction_was_long(
    streams: Streams, database: Database
) -> None:
    with database.begin() as connection:
        batch_id, _ = make_running_batch(connection)
    async with streams.follow() as follower:
        await follower.next()
        with database.begin() as connection:
            connection.execute(
                text(
                    "UPDATE batches SET status = 'completed', completed_at = now(), "
                    "updated_at = now() - interval '1 h' WHERE id = :id"
                ),
                {"id": batch_id},
            )
            made = make_batch(connection)
        assert [(await follower.next())["id"] for _ in range(2)] == [batch_id, made]


async def test_streams_of_a_tenant_share_one_poll_that_ends_with_the_last(streams: Streams, database: Database) -> None:
    with database.begin() as connection:
        batch_id, _ = make_running_batch(connection)
    async with streams.follow() as first:
        assert (await first.next())["id"] == batch_id
        async with streams.follow() as second:
            before = len(streams.statements)
            assert (await second.next())["id"] == batch_id
            assert len(streams.statements) == before, "a second stream begins without a statement"
            end(database, batch_id)
            for follower in (first, second):
                assert (await follower.next())["status"] == "completed"
    await asyncio.sleep(0)
    assert [task for task in asyncio.all_tasks() if task.get_name() == "batch_feed"] == []
    async with streams.follow() as third:
        assert (await third.next())["status"] == "completed", "it was changed just now"


async def test_every_process_has_the_same_feed(streams: Streams, settings: Settings, database: Database) -> None:
    engine = async_database_engine(settings.database_url or "", pool_size=1)
    async with streams.follow() as one, Streams(engine, settings).follow() as other:
        with database.begin() as connection:
            batch_id, _ = make_running_batch(connection)
        for follower in (one, other):
            assert (await follower.next())["id"] == batch_id
        end(database, batch_id)
        for follower in (one, other):
            assert (await follower.next())["status"] == "completed"
    await engine.dispose()


async def test_a_feed_at_rest_asks_one_small_question(streams: Streams, database: Database) -> None:
    with database.begin() as connection:
        make_running_batch(connection)
        connection.execute(text("UPDATE batches SET updated_at = now() - interval '1 h'"))
    async with streams.follow() as follower:
        await follower.next()
        before = len(streams.statements)
        while len(streams.statements) < before + 10:
            await asyncio.sleep(POLL_SECONDS)
        assert all("has_news" in statement for statement in streams.statements[before:][:10])


async def test_a_slow_reader_gets_the_last_state_of_each_batch(streams: Streams, database: Database) -> None:
    with database.begin() as connection:
        batch_id, _ = make_running_batch(connection)
    async with streams.follow() as slow, streams.follow() as quick:
        for follower in (slow, quick):
            await follower.next()
        for priority in (1, 2, 3):
            with database.begin() as connection:
                batch_control.set_urgency(batch_id, DEFAULT_TENANT, priority=priority, window=None).fetch_one(
                    connection
                )
            assert (await quick.next())["priority"] == priority
        assert (await slow.next())["priority"] == 3


async def test_a_stream_shows_nothing_of_another_tenant(streams: Streams, database: Database) -> None:
    with database.begin() as connection:
        make_running_batch(connection)
        connection.execute(text("INSERT INTO tenants (id) VALUES ('other')"))
        mine = make_batch(connection)
        connection.execute(text("UPDATE batches SET tenant_id = 'other' WHERE id = :id"), {"id": mine})
        connection.execute(text("UPDATE shards SET state = 'running', owner = 'w', lease_until = now()"))
    async with streams.follow("other") as follower, streams.follow() as other:
        assert (await follower.next())["id"] == mine
        await other.next()
        end(database, mine)
        assert ((await follower.next())["id"], mine) == (mine, mine)


async def test_a_stream_ends_with_its_key_and_with_the_process(streams: Streams, database: Database) -> None:
    async with streams.follow(key_id="key_1") as revoked, streams.follow(key_id="key_2") as kept:
        streams.waiters.end(not_valid().problem, ["key_1"])
        assert (await revoked.next())["error"]["code"] == "invalid_api_key"
        with database.begin() as connection:
            batch_id = make_batch(connection)
        assert (await kept.next())["id"] == batch_id
        streams.waiters.end_all(SHUTTING_DOWN.problem)
        assert "shutting down" in (await kept.next())["error"]["message"]


async def test_a_stream_ends_with_an_error_when_the_database_is_gone_and_another_one_begins(
    settings: Settings, database: Database
) -> None:
    engine = async_database_engine("postgresql://nobody@127.0.0.1:1/none", pool_size=1)
    broken = Streams(engine, settings)
    async with broken.follow() as follower:
        assert (await follower.next())["error"]["type"] == "server_error"
        engine = async_database_engine(settings.database_url or "", pool_size=1)
        broken.feeds._database = engine
        with database.begin() as connection:
            batch_id = make_batch(connection)
        async with broken.follow() as next_follower:
            assert (await next_follower.next())["id"] == batch_id
    await engine.dispose()


async def test_a_quiet_stream_sends_comments(streams: Streams, database: Database) -> None:
    stream = batch_changes(streams.feeds, streams.waiters, DEFAULT_TENANT, None, 0.01)
    async with asyncio.timeout(10), aclosing(stream):  # type: ignore[type-var]  # it is a generator
        assert [await anext(stream) for _ in range(3)] == [PING] * 3


def test_a_client_follows_its_batches_over_http(guarded: Guarded, tmp_path: Any) -> None:
    key, stranger = guarded.key("feed"), guarded.key("feed-stranger")
    refused = guarded.key("feed", scopes=["files"])
    assert refused.http.get("/v1/batches/events").status_code == 403
    reader = guarded.key("feed", scopes=["read-only"])
    theirs = start_batch(stranger.client, write_lines(tmp_path / "theirs.jsonl", batch_lines(1)))
    with reader.http.stream("GET", "/v1/batches/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert next(lines) == ": ping"
        batch_id = start_batch(key.client, write_lines(tmp_path / "mine.jsonl", batch_lines(3)))
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["status"] != "completed":
            line = next(lines)
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
    assert {batch["id"] for batch in seen} == {batch_id}
    assert theirs != batch_id
    assert seen[-1]["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert seen[-1] == key.http.get(f"/v1/batches/{batch_id}").json()
