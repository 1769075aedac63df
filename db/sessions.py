"""Connections: one pool per process, with the timeouts that keep a sick database from becoming a hang.

Commits are durable unless a session asks `relaxed()`: what may be lost then is what can be done again.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import TextClause, create_engine, make_url, text
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

_OPTIONS: Final = (
    "-c statement_timeout=10000 -c lock_timeout=3000 -c idle_in_transaction_session_timeout=15000 -c timezone=UTC"
)


def database_engine(url: str, *, pool_size: int = 5) -> Engine:
    """A pool for threads."""
    return create_engine(_driver(url), **_arguments(pool_size))


def async_database_engine(url: str, *, pool_size: int = 10) -> AsyncEngine:
    """A pool for one event loop."""
    return create_async_engine(_driver(url), **_arguments(pool_size))


def relaxed() -> TextClause:
    """This transaction's commit need not wait for the disk: for claims and queued jobs, never for answers."""
    return text("SET LOCAL synchronous_commit = off")


def patient() -> TextClause:
    """This transaction may run long: bulk work of the clerk."""
    return text(
        "SELECT set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true)"
    )


def _driver(url: str) -> URL:
    return make_url(url).set(drivername="postgresql+psycopg")


def _arguments(pool_size: int) -> dict[str, Any]:  # Any: keyword arguments of create_engine
    return {
        "pool_size": pool_size,
        "max_overflow": 2 * pool_size,
        "pool_timeout": 5,
        "pool_recycle": 1800,
        "pool_pre_ping": True,
        "hide_parameters": True,
        "connect_args": {
            "connect_timeout": 3,
            "options": _OPTIONS,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 10000,
            "application_name": "millrace",
        },
    }
