"""A create that fails halfway, and the next one with the same key."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from fastapi import Request
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.writes.idempotency import CreateOnce
from core.errors import ApiError, bad_request, not_found
from core.settings import Settings
from db.connections import async_database_engine
from db.tables import DEFAULT_TENANT


class Maker:
    """Creates objects, which are their ids, and raises the given errors."""

    def __init__(self, *, before: BaseException | None = None, after: BaseException | None = None) -> None:
        self.before, self.after = before, after
        self.tried: list[str] = []
        self.made: list[str] = []

    async def create(self, object_id: str) -> str:
        self.tried.append(object_id)
        if self.before is not None:
            raise self.before
        self.made.append(object_id)
        if self.after is not None:
            raise self.after
        return object_id

    async def find(self, object_id: str) -> str:
        if object_id not in self.made:
            raise not_found("no")
        return object_id

    def recover(self) -> None:
        self.before = self.after = None


class Once:
    """Sends requests that create an object."""

    def __init__(self, database: AsyncEngine, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    async def __call__(self, maker: Maker, key: str | None, body: str = "same") -> str:
        scope = {
            "type": "http", "method": "POST", "path": "/v1/things", "query_string": b"", "server": ("test", 80),
            "headers": [(b"host", b"test"), *([(b"idempotency-key", key.encode())] if key is not None else [])],
        }  # fmt: skip

        async def digest() -> str:
            return body

        create_once = CreateOnce(Request(scope), self._database, self._settings, DEFAULT_TENANT)
        return await create_once("thing_", body_digest=digest, find=maker.find, create=maker.create)


@pytest.fixture
async def once(settings: Settings, migrated: Engine) -> AsyncIterator[Once]:
    database = async_database_engine(settings.database_url or "", pool_size=2)
    yield Once(database, settings)
    await database.dispose()


@pytest.mark.parametrize("death", [RuntimeError("no"), asyncio.CancelledError()])
async def test_an_object_created_before_its_request_failed_is_found_by_the_next(
    once: Once, death: BaseException
) -> None:
    maker, key = Maker(after=death), str(uuid.uuid4())
    with pytest.raises(type(death)):
        await once(maker, key)
    maker.recover()
    assert await once(maker, key) == maker.made[0]
    assert await once(maker, key) == maker.made[0]
    assert len(maker.tried) == 1


@pytest.mark.parametrize("has_key", [False, True])
async def test_an_object_whose_commit_got_no_reply_is_created(once: Once, has_key: bool) -> None:
    """F31: the object is looked up after the failed commit."""
    key = str(uuid.uuid4()) if has_key else None
    maker = Maker(after=OperationalError("COMMIT", None, Exception("reset")))
    assert await once(maker, key) == maker.made[0]
    if key is not None:
        assert await once(maker, key) == maker.made[0]
    assert len(maker.tried) == 1


async def test_an_object_whose_commit_failed_is_not_created(once: Once) -> None:
    maker = Maker(before=OperationalError("INSERT", None, Exception("reset")))
    with pytest.raises(OperationalError):
        await once(maker, None)


async def test_an_object_that_was_not_created_is_created_by_the_next_request_under_the_same_id(once: Once) -> None:
    maker, key = Maker(before=RuntimeError("no")), str(uuid.uuid4())
    with pytest.raises(RuntimeError):
        await once(maker, key)
    maker.recover()
    assert await once(maker, key) == maker.tried[0]
    assert maker.made == maker.tried[1:]


async def test_a_refusal_gives_the_key_back(once: Once) -> None:
    maker, key = Maker(before=bad_request("no", code="invalid_value")), str(uuid.uuid4())
    with pytest.raises(ApiError):
        await once(maker, key, body="bad")
    maker.recover()
    assert await once(maker, key, body="good") == maker.made[0]


async def test_a_key_whose_request_runs_gets_a_409_with_retry_after(once: Once) -> None:
    key = str(uuid.uuid4())

    class Slow(Maker):
        async def create(self, object_id: str) -> str:
            with pytest.raises(ApiError) as caught:
                await once(Maker(), key)
            assert caught.value.problem.code == "idempotency_key_in_use"
            assert caught.value.headers == {"Retry-After": "1", "x-should-retry": "true"}
            return await super().create(object_id)

    await once(Slow(), key)
