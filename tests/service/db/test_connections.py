"""Connections: timeouts for a hanging database, and for a frozen holder of a lock."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import DBAPIError

from cli.stack.services import Services
from db.connections import ConnectionLosses, allow_long_transaction, database_engine
from tests.support.stack import wait_for

LOCK = 727_999


def setting(connection: Connection, name: str) -> str:
    return str(connection.execute(select(func.current_setting(name))).scalar_one())


def test_every_session_has_its_timeouts(migrated: Engine) -> None:
    with migrated.connect() as connection:
        timeouts = {name: setting(connection, name) for name in ("statement_timeout", "lock_timeout")}
        assert timeouts == {"statement_timeout": "10s", "lock_timeout": "3s"}
        assert setting(connection, "idle_in_transaction_session_timeout") == "15s"
        assert setting(connection, "TimeZone") == "UTC"
        assert setting(connection, "synchronous_commit") == "on"


def test_a_network_that_went_away_is_noticed(services: Services) -> None:
    engine = database_engine(services.database_url, pool_size=1)
    try:
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            given = driver.info.get_parameters()
    finally:
        engine.dispose()
    expected = {
        "connect_timeout": "3",
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
    }
    assert {name: given.get(name) for name in expected} == expected


def test_a_pool_with_async_commit_has_the_same_timeouts_and_does_not_wait_for_the_disk(services: Services) -> None:
    engine = database_engine(services.database_url, pool_size=1, async_commit=True)
    try:
        with engine.connect() as connection:
            assert setting(connection, "synchronous_commit") == "off"
            assert setting(connection, "statement_timeout") == "10s"
    finally:
        engine.dispose()


def test_bulk_work_gets_minutes_and_not_for_ever(migrated: Engine) -> None:
    with migrated.begin() as connection:
        connection.execute(allow_long_transaction())
        assert setting(connection, "statement_timeout") == "10min"
        assert setting(connection, "idle_in_transaction_session_timeout") == "1min"
    with migrated.begin() as connection:
        assert setting(connection, "statement_timeout") == "10s", "for that transaction only"


def test_a_leader_that_freezes_loses_its_lock_and_gets_an_error(migrated: Engine) -> None:
    """Its transaction is idle meanwhile; the test shortens the timeout for that."""
    lock = select(func.pg_try_advisory_xact_lock(LOCK))

    def is_free() -> bool:
        with migrated.begin() as other:
            return bool(other.execute(lock).scalar_one())

    with pytest.raises(DBAPIError), migrated.begin() as leader:
        leader.execute(text("SELECT set_config('idle_in_transaction_session_timeout', '1s', true)"))
        assert leader.execute(lock).scalar_one()
        assert not is_free()
        wait_for(is_free, "the database takes the lock away", 20)
        leader.execute(select(1))
    assert is_free()


def test_pools_that_share_their_losses_cost_one_failure_when_connections_are_ended(services: Services) -> None:
    losses = ConnectionLosses()
    pools = [
        database_engine(services.database_url, losses=losses, async_commit=async_commit)
        for async_commit in (False, True)
    ]
    killer = database_engine(services.database_url, pool_size=1)
    failed = []
    try:
        with pools[0].connect() as one, pools[0].connect() as two, pools[1].connect() as three:
            sessions = [each.execute(select(func.pg_backend_pid())).scalar_one() for each in (one, two, three)]
        with killer.connect() as connection:
            connection.execute(text("SELECT pg_terminate_backend(pid) FROM unnest(:pids) AS pid"), {"pids": sessions})
        for pool in (*pools, *pools):
            try:
                with pool.connect() as connection:
                    connection.execute(text("SELECT 1"))
            except DBAPIError:
                failed.append(pools.index(pool))
    finally:
        for pool in (*pools, killer):
            pool.dispose()
    assert failed == [0]
