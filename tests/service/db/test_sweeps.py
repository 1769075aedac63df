"""The poll of the clerks: it finds the parts of a sweep that have something to do, and none at rest."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import Connection, func, update

from core.states import ModelAction
from db import files, jobs, model_requests, quarantine, sweeps
from db.tables import DEFAULT_TENANT, Batch, EngineCrash, Job, ModelRequest
from tests.support.rows import make_batch, make_file, make_job, make_running_batch
from workers.context import Database

HOUR = timedelta(hours=1)
LOOK = sweeps.due_parts(ticket_age=HOUR, idempotency_age=HOUR, quarantine_age=HOUR, crash_age=HOUR, file_age=HOUR)
LONG_AGO = func.now() - 2 * HOUR


def due(database: Database) -> set[str]:
    with database.autocommit() as connection:
        found = LOOK.fetch_one(connection)
    return {name for name, is_due in found._asdict().items() if is_due}


def wait_for_a_clerk(connection: Connection) -> None:
    make_batch(connection)
    connection.execute(update(Batch).values(dispatched_at=LONG_AGO))


def end_the_window(connection: Connection) -> None:
    make_running_batch(connection, [1])
    connection.execute(update(Batch).values(expires_at=LONG_AGO))


def lose_a_ticket(connection: Connection) -> None:
    make_job(connection)
    connection.execute(update(Job).values(dispatched_at=LONG_AGO))


def lose_a_worker(connection: Connection) -> None:
    jobs.claim_job(make_job(connection), "dead", timedelta(seconds=-1)).fetch_one(connection)


def forget_a_crash(connection: Connection) -> None:
    connection.execute(quarantine.add_engine_crash("fake", "host/cpu", -11))
    connection.execute(update(EngineCrash).values(crashed_at=LONG_AGO))


def hide_a_file(connection: Connection) -> None:
    connection.execute(files.hide_file(make_file(connection), DEFAULT_TENANT)).one()


def finish_a_request(connection: Connection) -> None:
    connection.execute(model_requests.add_request("m", ModelAction.UNLOAD))
    connection.execute(update(ModelRequest).values(unload_at=LONG_AGO))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: None, set()),
        (make_batch, set()),  # its ticket has just been sent
        (wait_for_a_clerk, {"batches"}),
        (lambda connection: make_running_batch(connection, [1]), {"models"}),
        (end_the_window, {"batches", "models"}),
        (make_job, {"models"}),
        (lose_a_ticket, {"jobs", "models"}),
        (lose_a_worker, {"jobs"}),
        (forget_a_crash, {"quarantine"}),
        (hide_a_file, {"rows"}),
        (finish_a_request, {"rows"}),
    ],
)
def test_a_part_is_due_when_its_statements_find_something(
    database: Database, make: Callable[[Connection], object], expected: set[str]
) -> None:
    with database.begin() as connection:
        make(connection)
    assert due(database) == expected
