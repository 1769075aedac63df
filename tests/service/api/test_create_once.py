"""A create that dies halfway, and the one that comes after it with the same key."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import Request
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from api.app import create_app
from api.dependencies import AppState
from api.writes.idempotency import create_once
from core.errors import ApiError, bad_request, not_found
from core.settings import Settings
from db.tables import DEFAULT_TENANT


class Maker:
    """Makes objects, which are their ids, and dies as told."""

    def __init__(self, *, before: BaseException | None = None, after: BaseException | None = None) -> None:
        self.before, self.after = before, after
        self.asked: list[str] = []
        self.made: list[str] = []

    async def create(self, object_id: str) -> str:
        self.asked.append(object_id)
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

    def is_well_again(self) -> None:
        self.before = self.after = None


@asynccontextmanager
async def running_app(settings: Settings) -> AsyncIterator[AppState]:
    """Start an app and yield its state."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app.state.millrace


async def once(state: AppState, maker: Maker, key: str | None, body: str = "same") -> str:
    scope = {
        "type": "http", "method": "POST", "path": "/v1/things", "query_string": b"", "server": ("test", 80),
        "headers": [(b"host", b"test"), *([(b"idempotency-key", key.encode())] if key is not None else [])],
    }  # fmt: skip

    async def digest() -> str:
        return body

    return await create_once(
        Request(scope), state, DEFAULT_TENANT, "thing_", body_digest=digest, find=maker.find, create=maker.create
    )


@pytest.mark.parametrize("death", [RuntimeError("no"), asyncio.CancelledError()])
async def test_what_was_made_before_the_request_died_is_found_by_the_next(
    settings: Settings, migrated: Engine, death: BaseException
) -> None:
    maker, key = Maker(after=death), str(uuid.uuid4())
    async with running_app(settings) as state:
        with pytest.raises(type(death)):
            await once(state, maker, key)
        maker.is_well_again()
        assert await once(state, maker, key) == maker.made[0]
        assert await once(state, maker, key) == maker.made[0]
    assert len(maker.asked) == 1


@pytest.mark.parametrize("has_key", [False, True])
async def test_what_was_committed_without_a_reply_is_made(settings: Settings, migrated: Engine, has_key: bool) -> None:
    """F31: the outcome is read again."""
    key = str(uuid.uuid4()) if has_key else None
    maker = Maker(after=OperationalError("COMMIT", None, Exception("reset")))
    async with running_app(settings) as state:
        assert await once(state, maker, key) == maker.made[0]
        if key is not None:
            assert await once(state, maker, key) == maker.made[0]
    assert len(maker.asked) == 1


async def test_what_was_not_committed_is_not_made(settings: Settings, migrated: Engine) -> None:
    maker = Maker(before=OperationalError("INSERT", None, Exception("reset")))
    async with running_app(settings) as state:
        with pytest.raises(OperationalError):
            await once(state, maker, None)


async def test_what_was_not_made_is_made_by_the_next_under_the_same_id(settings: Settings, migrated: Engine) -> None:
    maker, key = Maker(before=RuntimeError("no")), str(uuid.uuid4())
    async with running_app(settings) as state:
        with pytest.raises(RuntimeError):
            await once(state, maker, key)
        maker.is_well_again()
        assert await once(state, maker, key) == maker.asked[0]
    assert maker.made == maker.asked[1:]


async def test_a_refusal_gives_the_key_back(settings: Settings, migrated: Engine) -> None:
    maker, key = Maker(before=bad_request("no", code="invalid_value")), str(uuid.uuid4())
    async with running_app(settings) as state:
        with pytest.raises(ApiError):
            await once(state, maker, key, body="bad")
        maker.is_well_again()
        assert await once(state, maker, key, body="good") == maker.made[0]


async def test_a_key_whose_request_runs_says_when_to_come_again(settings: Settings, migrated: Engine) -> None:
    key = str(uuid.uuid4())

    class Slow(Maker):
        async def create(self, object_id: str) -> str:
            with pytest.raises(ApiError) as caught:
                await once(state_of[0], Maker(), key)
            assert caught.value.problem.code == "idempotency_key_in_use"
            assert caught.value.headers == {"Retry-After": "1", "x-should-retry": "true"}
            return await super().create(object_id)

    state_of: list[AppState] = []
    async with running_app(settings) as state:
        state_of.append(state)
        await once(state, Slow(), key)
