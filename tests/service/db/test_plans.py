"""Queries of the service beside many rows: none reads many more than it returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from bench.scale_rows import Filled, fill, run, statements
from cli.stack.services import Services
from db.connections import database_engine
from db.schema_version import upgrade

ROWS = 60_000
MOST_READ = 2_000


@pytest.fixture(scope="module")
def filled(services: Services, migrated: Engine) -> Iterator[tuple[Connection, Filled]]:
    """A database with batches of many lines, most of which have ended; and a connection that explains its statements."""
    with migrated.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.execute(text("DROP DATABASE IF EXISTS filled"))
        admin.execute(text("CREATE DATABASE filled"))
    engine = database_engine(services.database_url.replace("/millrace?", "/filled?"), pool_size=1)
    upgrade(engine)
    rows = fill(engine, ROWS, lines=2_500)
    with engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", explain, retval=True)
        yield connection, rows
    engine.dispose()


def explain(_: Connection, __: Any, statement: str, parameters: Any, ___: Any, ____: bool) -> tuple[str, Any]:
    return f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters


def read_rows(plan: dict[str, Any]) -> float:
    """The rows of `jobs` that a plan reads and does not return."""
    removed = 0.0
    if plan.get("Relation Name") == "jobs":
        dropped = (plan.get(name, 0) for name in ("Rows Removed by Filter", "Rows Removed by Index Recheck"))
        removed = sum(dropped) * plan["Actual Loops"]
    return removed + sum(read_rows(each) for each in plan.get("Plans", ()))


def test_no_query_reads_lines_that_it_does_not_return(filled: tuple[Connection, Filled]) -> None:
    connection, rows = filled
    found = {}
    for name, make in statements(rows).items():
        query = make(1)
        with connection.begin() as transaction:
            result = run(connection, query)
            plan = result.cursor.fetchone()[0][0]  # type: ignore[attr-defined] # past the types of the columns
            transaction.rollback()
        found[name] = read_rows(plan["Plan"])
    assert {name: number for name, number in found.items() if number > MOST_READ} == {}
