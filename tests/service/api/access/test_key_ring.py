"""The key ring with a manual clock: caching, equal answers to all invalid keys, and access without keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import Engine, event, func, update

from api.services.key_ring import KEYLESS, Caller, KeyRing
from cli.stack.services import Services
from cli.stack.stack import _migrate
from core import ids
from core.api_keys import KEY, NewKey, Scope, key_digest, new_key
from core.errors import ApiError, ConfigError
from core.settings import Settings
from db import keys
from db.connections import async_database_engine
from db.keys import check_exposure
from db.tables import DEFAULT_TENANT, ApiKey
from tests.support.clock import Clock

HERE = "127.0.0.1"
ELSEWHERE = "203.0.113.9"


def make(engine: Engine) -> tuple[str, NewKey]:
    made, key_id = new_key(), ids.new_id(KEY)
    with engine.begin() as connection:
        connection.execute(
            keys.insert_key(id=key_id, tenant_id=DEFAULT_TENANT, name="", prefix=made.prefix, digest=made.digest)
        )
    return key_id, made


@asynccontextmanager
async def key_ring(
    services: Services, *, open_without_keys: bool = False
) -> AsyncIterator[tuple[KeyRing, Clock, list[str]]]:
    """Yield a fresh key ring, its clock, and the list of statements that it has sent."""
    engine = async_database_engine(services.database_url, pool_size=1)
    statements: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    clock = Clock()
    try:
        yield KeyRing(engine, cache_seconds=5, open_without_keys=open_without_keys, clock=clock), clock, statements
    finally:
        await engine.dispose()


async def status(ring: KeyRing, key: str | None, peer: str | None = HERE) -> Caller | int:
    try:
        return await ring.identify(key, peer)
    except ApiError as error:
        return error.problem.status


async def test_a_revoked_key_stops_working_within_the_cache_time(services: Services, no_keys: Engine) -> None:
    key_id, made = make(no_keys)
    async with key_ring(services) as (ring, clock, _):
        caller = await ring.identify(made.text, ELSEWHERE)
        assert (caller.key_id, caller.scopes) == (key_id, {Scope.INFERENCE, Scope.FILES})
        with no_keys.begin() as connection:
            connection.execute(keys.revoke_key(key_id)).one()
        clock.now += 5
        assert await status(ring, made.text) == 401


async def test_a_cached_key_costs_no_query_valid_or_not(services: Services, no_keys: Engine) -> None:
    _, made = make(no_keys)
    async with key_ring(services) as (ring, _, statements):
        for _ in range(5):
            await ring.identify(made.text, HERE)
            assert await status(ring, "sk-wrong") == 401
        assert len([statement for statement in statements if "api_keys" in statement]) == 3


async def test_all_invalid_keys_get_the_same_answer_for_the_same_work(services: Services, no_keys: Engine) -> None:
    """Timing reveals nothing: each costs one digest and one query, and no query the second time."""
    (revoked_id, revoked), (_, expired) = make(no_keys), make(no_keys)
    with no_keys.begin() as connection:
        connection.execute(keys.revoke_key(revoked_id)).one()
        end = update(ApiKey).where(ApiKey.digest == expired.digest).values(expires_at=func.now())
        connection.execute(end)
    well_formed = new_key().text
    wrong = [
        None,
        "nonsense",
        "sk-\x00",
        "sk-\xff\u043a",
        "' OR 1=1 --",
        "x" * 100_000,
        well_formed,
        revoked.text,
        expired.text,
    ]
    async with key_ring(services) as (ring, _, statements):
        assert await status(ring, "the first question asks whether there is any key") == 401
        answers = set()
        for key in wrong:
            statements.clear()
            for _ in range(2):
                with pytest.raises(ApiError) as caught:
                    await ring.identify(key, ELSEWHERE)
                answers.add((caught.value.problem, *caught.value.headers.items()))
            assert len([statement for statement in statements if "api_keys" in statement]) == 1, key
        assert len(answers) == 1


async def test_the_cache_of_keys_is_bounded(services: Services, no_keys: Engine, monkeypatch) -> None:
    monkeypatch.setattr("api.services.key_ring._MAX_CACHED", 10)
    _, made = make(no_keys)
    async with key_ring(services) as (ring, _, _):
        for number in range(30):
            assert await status(ring, f"sk-{number}") == 401
        assert len(ring._cache) == 10
        assert isinstance(await status(ring, made.text), Caller)


async def test_without_keys_only_loopback_is_accepted_until_a_key_existed(services: Services, no_keys: Engine) -> None:
    async with key_ring(services) as (ring, clock, _):
        assert [await status(ring, None, peer) for peer in (HERE, "::1", ELSEWHERE, None)] == [
            KEYLESS,
            KEYLESS,
            401,
            401,
        ]
        key_id, _ = make(no_keys)
        with no_keys.begin() as connection:
            connection.execute(keys.revoke_key(key_id)).one()
        clock.now += 5
        assert await status(ring, None) == 401


async def test_open_without_keys_accepts_every_address(services: Services, no_keys: Engine) -> None:
    async with key_ring(services, open_without_keys=True) as (ring, _, _):
        assert await status(ring, None, ELSEWHERE) == KEYLESS


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-server"])
def test_listening_on_other_addresses_needs_a_key_or_the_setting(no_keys: Engine, host: str) -> None:
    with no_keys.connect() as connection:
        with pytest.raises(ConfigError, match="MILLRACE_OPEN_WITHOUT_KEYS"):
            check_exposure(connection, Settings(host=host))
        check_exposure(connection, Settings(host=host, open_without_keys=True))
    make(no_keys)
    with no_keys.connect() as connection:
        check_exposure(connection, Settings(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_listening_on_loopback_needs_no_key(no_keys: Engine, host: str) -> None:
    with no_keys.connect() as connection:
        check_exposure(connection, Settings(host=host))


def test_a_first_key_is_made_only_where_one_is_needed(services: Services, no_keys: Engine) -> None:
    def migrate(settings: Settings) -> str | None:
        return _migrate(services.database_url, settings, creates_key=True)

    assert migrate(Settings(host="127.0.0.1")) is None
    assert migrate(Settings(host="0.0.0.0", open_without_keys=True)) is None
    key = migrate(Settings(host="0.0.0.0"))
    assert key is not None
    with no_keys.connect() as connection:
        row = keys.find_valid_key(key_digest(key)).fetch_one(connection)
    assert (row.tenant_id, row.scopes) == (DEFAULT_TENANT, ["inference", "files"])
    assert migrate(Settings(host="0.0.0.0")) is None, "a later start has that key"
