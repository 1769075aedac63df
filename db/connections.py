"""Connections: one pool per process, with timeouts, so that no caller hangs when the database does.

A pool with `async_commit` is for single statements that may be repeated: each is its own transaction, in one round trip, and
its commit does not wait for the disk. It takes claims and chat jobs, never answers.

Behind a pooler in transaction mode (PgBouncer) each transaction may run in another session: no statement is prepared, nothing
sets session state, and locks are those of transactions. `deploy/pgbouncer` sets the timeouts there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from sqlalchemy import Connection, TextClause, create_engine, event, make_url, text
from sqlalchemy.engine import URL, Engine, ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from core.failpoints import Point, failpoint
from core.service_urls import database_unreachable

_OPTIONS: Final = (
    "-c statement_timeout=10000 -c lock_timeout=3000 -c idle_in_transaction_session_timeout=15000 -c timezone=UTC "
    # no disk that turns: with the default of 4, a batch without statistics is read and sorted as a whole for its last lines
    "-c random_page_cost=1.1"
)
_IDLE_SECONDS: Final = 1.0
_SHARING_TRIES: Final = 5
_TRANSIENT: Final = {"08", "40", "53", "55", "57"}  # connections, deadlocks, resources, locks, an operator at work
_READ_ONLY: Final = "25006"  # another server has become the primary one


@dataclass(slots=True)
class ConnectionLosses:
    """The time at which one of these pools last lost a connection; idle connections of all of them may be lost, too."""

    last_at: float = -inf


def database_engine(
    url: str,
    *,
    pool_size: int = 5,
    max_connections: int | None = None,
    async_commit: bool = False,
    losses: ConnectionLosses | None = None,
) -> Engine:
    """Create a pool for threads. It keeps `pool_size` connections, and opens more up to `max_connections`, by default thrice.

    Pools that share `losses` cost one failure in all after a restart of the server.
    """
    arguments = _arguments(pool_size, async_commit=async_commit)
    if max_connections is not None:
        arguments["max_overflow"] = max_connections - pool_size
    engine = create_engine(_driver(url), **arguments)
    _prepare_nothing_behind_poolers(engine)
    _ping_suspects(engine, losses or ConnectionLosses())
    return engine


def async_database_engine(
    url: str, *, pool_size: int = 10, async_commit: bool = False, losses: ConnectionLosses | None = None
) -> AsyncEngine:
    """Create a pool for one event loop."""
    engine = create_async_engine(_driver(url), **_arguments(pool_size, async_commit=async_commit))
    _prepare_nothing_behind_poolers(engine.sync_engine)
    _ping_suspects(engine.sync_engine, losses or ConnectionLosses())
    return engine


@contextmanager
def first_connection(engine: Engine) -> Iterator[Connection]:
    """Open the first connection of a process. Raises Unreachable, with host, port and reason."""
    try:
        connection = engine.connect()
    except (OperationalError, ProgrammingError) as error:  # the latter: an option of the URL that there is not
        raise database_unreachable(engine.url.render_as_string(hide_password=True), error) from None
    with connection:
        yield connection


@contextmanager
def transaction(
    engine: Engine, *, committing: Point | None = None, committed: Point | None = None
) -> Iterator[Connection]:
    """Open a transaction, with failpoints before and after its commit."""
    with engine.begin() as connection:
        yield connection
        if committing is not None:
            failpoint(committing)
    if committed is not None:
        failpoint(committed)


@asynccontextmanager
async def async_transaction(
    engine: AsyncEngine, *, committing: Point | None = None, committed: Point | None = None
) -> AsyncIterator[AsyncConnection]:
    """Open a transaction on an event loop, with failpoints before and after its commit."""
    async with engine.begin() as connection:
        yield connection
        if committing is not None:
            failpoint(committing)
    if committed is not None:
        failpoint(committed)


def allow_long_transaction() -> TextClause:
    """Raise the timeouts of this transaction for bulk work. Limits remain, since a frozen clerk would keep its locks."""
    return text(
        "SELECT set_config('statement_timeout', '10min', true), "
        "set_config('idle_in_transaction_session_timeout', '1min', true)"
    )


def is_transient(error: SQLAlchemyError) -> bool:
    """Is a retry worth it: no connection, no room, a lock, a timeout? The commit may have succeeded all the same."""
    if isinstance(error, PoolTimeout | OperationalError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    return error.connection_invalidated or sqlstate[:2] in _TRANSIENT or sqlstate == _READ_ONLY


def is_pooled(connection: Any, driver: Any) -> bool:  # Any: a connection of DBAPI, and psycopg's own below it
    """Is there a pooler between? It gives its clients a process id of its own, and the server's backend has another."""
    cursor = connection.cursor()
    try:
        cursor.execute("SELECT pg_backend_pid()")
        return bool(cursor.fetchone()[0] != driver.info.backend_pid)
    finally:
        cursor.close()


def shares_sessions(url: str) -> bool:
    """Is there a pooler that gives a session to other clients after each transaction?

    Of two clients that are connected, one is then given the session that the other one had. Raises Unreachable.
    """
    engine = database_engine(url, pool_size=2)
    seen: tuple[set[int], set[int]] = set(), set()
    try:
        with first_connection(engine) as one:
            if not is_pooled(one.connection, one.connection.driver_connection):
                return False
            one.rollback()
            with engine.connect() as other:
                for _ in range(_SHARING_TRIES):
                    for connection, pids in zip((one, other), seen, strict=True):
                        pids.add(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
                        connection.rollback()
    finally:
        engine.dispose()
    return bool(seen[0] & seen[1]) or len(seen[0]) > 1 or len(seen[1]) > 1


def _driver(url: str) -> URL:
    return make_url(url).set(drivername="postgresql+psycopg")


def _prepare_nothing_behind_poolers(engine: Engine) -> None:
    """Turn prepared statements off if the first connection finds a pooler: the next transaction may be in another session."""
    found: list[bool] = []

    @event.listens_for(engine, "connect")
    def detect(connection: Any, record: Any) -> None:  # Any: as in _ping_suspects
        if not found:
            found.append(is_pooled(connection, record.driver_connection))
            connection.rollback()
        if found[0]:
            record.driver_connection.prepare_threshold = None


def _ping_suspects(engine: Engine, losses: ConnectionLosses) -> None:
    """Ping a connection before its use when it was idle, or another one was lost: the server may have been restarted.

    SQLAlchemy's own pre-ping does so before every use, which doubles the cost of a single statement.
    """

    @event.listens_for(engine, "checkin")
    def record_idle(_: Any, record: Any) -> None:  # Any: the driver's connection, and the pool's record of it
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ping_idle(connection: Any, record: Any, _: Any) -> None:  # Any: as above, and the pool's proxy
        now = time.monotonic()
        since = record.info.get("idle_since", now)
        if now - since < _IDLE_SECONDS and since > losses.last_at:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error

    @event.listens_for(engine, "handle_error")
    def record_loss(context: ExceptionContext) -> None:
        if context.is_disconnect:
            losses.last_at = time.monotonic()


def _arguments(pool_size: int, *, async_commit: bool) -> dict[str, Any]:  # Any: keyword arguments of create_engine
    return {
        "pool_size": pool_size,
        "max_overflow": 2 * pool_size,
        "pool_timeout": 5,
        "pool_recycle": 1800,
        **({"isolation_level": "AUTOCOMMIT"} if async_commit else {}),
        "hide_parameters": True,
        "connect_args": {
            "connect_timeout": 3,
            "options": _OPTIONS + (" -c synchronous_commit=off" if async_commit else ""),
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 10000,
            "application_name": "millrace",
        },
    }
