"""A batch whose rows are copied by several statements."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from core.states import JobState
from db.tables import Job, Shard
from tests.service.workers.batches.test_clerk import line, upload
from tests.support.contexts import with_settings
from workers.batches import prepare as module
from workers.batches.prepare import prepare
from workers.context import ClerkContext


@pytest.mark.parametrize("num_rows", [1, 2, 5, 100])
def test_every_line_is_copied_once_by_however_many_statements(
    clerk: ClerkContext, monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    monkeypatch.setattr(module, "_COPY_LINES", num_rows)
    models = ["fake", "none", "fake", "fake", "none"]
    prepare(
        with_settings(clerk, shard_lines=2),
        upload(clerk, "\n".join(line(f"l{n}", model) for n, model in enumerate(models))),
    )
    with clerk.database.begin() as connection:
        rows = connection.execute(select(Job.line, Job.custom_id, Job.state, Job.position).order_by(Job.line)).all()
        first_lines = connection.execute(select(Shard.first_line).order_by(Shard.position)).scalars().all()
    waiting, failed = JobState.QUEUED, JobState.FAILED
    assert [tuple(row) for row in rows] == [
        (1, "l0", waiting, 0),
        (2, "l1", failed, None),
        (3, "l2", waiting, 1),
        (4, "l3", waiting, 2),
        (5, "l4", failed, None),
    ]
    assert first_lines == [1, 4]
