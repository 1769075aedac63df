"""Bulk insert by COPY: an order of magnitude faster than INSERT, at flat memory.

Runs on the psycopg connection under a SQLAlchemy one, inside its transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import psycopg
from sqlalchemy import Connection

from core.states import JobState


class LineRow(NamedTuple):
    """A line of a batch to copy; the names are columns of `jobs`."""

    id: str
    tenant_id: str
    batch_id: str
    shard_id: str | None
    position: int | None
    line: int
    custom_id: str
    model: str
    state: JobState
    body: str
    problem: str | None
    finished_at: str | None
    endpoint: str


class ShardRow(NamedTuple):
    """A shard to copy; the names are columns of `shards`."""

    id: str
    batch_id: str
    tenant_id: str
    model: str
    position: int
    lines: int
    first_line: int


_COPY_LINES: Final = f"COPY jobs ({', '.join(LineRow._fields)}) FROM STDIN"
_COPY_SHARDS: Final = f"COPY shards ({', '.join(ShardRow._fields)}) FROM STDIN"


@contextmanager
def copy_lines(connection: Connection) -> Iterator[psycopg.Copy]:
    """Open a COPY for `LineRow`s, to be written with `write_row`; none is inserted when the block raises."""
    with _driver(connection).cursor() as cursor, cursor.copy(_COPY_LINES.encode()) as copy:
        yield copy


def copy_shards(connection: Connection, shards: list[ShardRow]) -> None:
    """Insert the shards of a batch."""
    with _driver(connection).cursor() as cursor, cursor.copy(_COPY_SHARDS.encode()) as copy:
        for shard in shards:
            copy.write_row(shard)


def _driver(connection: Connection) -> psycopg.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
