"""Batches that have not ended, and those that do not end within their windows."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Connection, func, update

from core.states import BatchState
from db import backlog
from db.tables import Batch, Shard
from tests.support.rows import make_batch, make_running_batch


def _begun(connection: Connection, batch_id: str, used: timedelta, left: timedelta) -> None:
    times = {"in_progress_at": func.now() - used, "expires_at": func.now() + left}
    connection.execute(update(Batch).where(Batch.id == batch_id).values(**times))


@pytest.mark.parametrize(
    ("used_hours", "left_hours", "completed", "at_risk"),
    [
        (5, 4, 5, 1),  # five lines in five hours: the other five need five more
        (5, 6, 5, 0),
        (3, 21, 0, 1),  # an eighth of the window, and no line
        (1, 23, 0, 0),  # too early to know
        (5, 1, 10, 0),  # nothing is left
    ],
)
def test_a_batch_is_at_risk_at_a_pace_that_its_window_is_too_short_for(
    connection: Connection, used_hours: int, left_hours: int, completed: int, at_risk: int
) -> None:
    batch_id, (shard_id,) = make_running_batch(connection, [10])
    _begun(connection, batch_id, timedelta(hours=used_hours), timedelta(hours=left_hours))
    connection.execute(update(Shard).where(Shard.id == shard_id).values(lines_completed=completed))
    (row,) = backlog.open_batches().fetch_all(connection)
    assert (row.status, row.batches, row.at_risk) == (BatchState.IN_PROGRESS, 1, at_risk)
    expected = None if completed == 10 else left_hours * 3600
    assert row.seconds_left == expected


def test_batches_are_counted_by_status(connection: Connection) -> None:
    for lines in ([1], [2, 3]):
        make_running_batch(connection, lines)
    make_batch(connection)
    counts = {row.status: row.batches for row in backlog.open_batches().fetch_all(connection)}
    assert counts == {BatchState.IN_PROGRESS: 2, BatchState.VALIDATING: 1}
