"""History: what ended `history_days` ago is deleted in small steps, and all else stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import func, select, update

from core import ids
from core.states import BatchState, JobState
from db import jobs, responses, stored_chats
from db.tables import DEFAULT_TENANT, Batch, File, Job, Shard, UsageDaily
from tests.support.contexts import with_settings
from tests.support.rows import make_file, make_job, make_running_batch
from workers.context import ClerkContext
from workers.maintenance import history
from workers.maintenance.history import History

LINES = 3


class Past:
    """Makes rows as if it were some days ago."""

    def __init__(self, clerk: ClerkContext, monkeypatch: pytest.MonkeyPatch) -> None:
        self._clerk = clerk
        self._monkeypatch = monkeypatch

    @contextmanager
    def _days_ago(self, days: float) -> Iterator[Any]:  # Any: an expression of SQL
        with self._monkeypatch.context() as patched, self._clerk.database.begin() as connection:
            now = connection.execute(select(func.now())).scalar_one().timestamp()
            patched.setattr(ids, "time", SimpleNamespace(time_ns=lambda: int((now - 86400 * days) * 1e9)))
            yield connection, func.now() - timedelta(days=days)

    def batch(self, days: float, *, parent: str | None = None, is_open: bool = False, lines: int = LINES) -> str:
        with self._days_ago(days) as (connection, moment):
            batch_id, _ = make_running_batch(connection, [lines])
            file_id = make_file(connection, "batch_output")
            ended = (
                {} if is_open else {"status": BatchState.COMPLETED, "completed_at": moment, "output_file_id": file_id}
            )
            connection.execute(update(Batch).where(Batch.id == batch_id).values(parent_batch_id=parent, **ended))
            return batch_id

    def request(self, days: float, state: JobState = JobState.COMPLETED) -> str:
        with self._days_ago(days) as (connection, moment):
            job_id = make_job(connection)
            ended = {"finished_at": moment, "answer": "{}"} if state is JobState.COMPLETED else {}
            connection.execute(update(Job).where(Job.id == job_id).values(state=state, **ended))
            return job_id


@pytest.fixture
def past(clerk: ClerkContext, monkeypatch: pytest.MonkeyPatch) -> Past:
    return Past(clerk, monkeypatch)


def sweep(clerk: ClerkContext, days: float = 30) -> None:
    History(with_settings(clerk, history_days=days), clock=lambda: 0.0).sweep()


def kept(clerk: ClerkContext, table: type[Any]) -> set[str]:
    with clerk.database.begin() as connection:
        return set(connection.execute(select(table.id)).scalars())


def test_batches_go_with_their_lines_and_all_else_stays(clerk: ClerkContext, past: Past) -> None:
    past.batch(31)
    young, open_one = past.batch(29), past.batch(31, is_open=True)
    with clerk.database.begin() as connection:
        connection.execute(
            jobs.add_usage(DEFAULT_TENANT, "fake", requests=1, prompt_tokens=1, completion_tokens=1, cached_tokens=0)
        )
    sweep(clerk)
    assert kept(clerk, Batch) == {young, open_one}
    with clerk.database.begin() as connection:
        for table in (Job, Shard):
            assert set(connection.execute(select(table.batch_id)).scalars()) == {young, open_one}
        assert connection.execute(select(func.count()).select_from(UsageDaily)).scalar_one() == 1
        results = select(func.count()).where(File.purpose == "batch_output", File.deleted_at.is_(None))
        assert connection.execute(results).scalar_one() == 3, "result files have an expiry of their own"


def test_a_batch_stays_for_as_long_as_its_retry(clerk: ClerkContext, past: Past) -> None:
    root = past.batch(40)
    retry = past.batch(20, parent=root)
    sweep(clerk)
    assert kept(clerk, Batch) == {root, retry}
    sweep(clerk, days=10)
    assert kept(clerk, Batch) == set()


def test_requests_go_unless_they_are_stored_or_have_not_ended(clerk: ClerkContext, past: Past) -> None:
    _, chat, response = past.request(31), past.request(31), past.request(31)
    young, waiting = past.request(29), past.request(31, JobState.QUEUED)
    with clerk.database.begin() as connection:
        connection.execute(stored_chats.insert_stored_chat(chat, DEFAULT_TENANT, "fake", {}))
        connection.execute(
            responses.insert_response(
                response_id="resp_1",
                tenant_id=DEFAULT_TENANT,
                job_id=response,
                previous_id=None,
                model="fake",
                request="{}",
                input_items=json.dumps([]),
            )
        )
    sweep(clerk)
    assert kept(clerk, Job) == {chat, response, young, waiting}


def test_without_the_setting_everything_is_kept(clerk: ClerkContext, past: Past) -> None:
    batch_id, request = past.batch(10_000), past.request(10_000)
    History(clerk).sweep()
    assert kept(clerk, Batch) == {batch_id}
    assert request in kept(clerk, Job)


def test_a_sweep_takes_a_bounded_time_and_the_next_ones_go_on(
    clerk: ClerkContext, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_LINES", 2)
    past.batch(31, lines=20)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.5  # the time of a step
        return now

    sweeping = History(with_settings(clerk, history_days=30), clock)
    left = []
    while kept(clerk, Batch):
        before = now
        sweeping.sweep()
        assert now - before < 3
        left.append(len(kept(clerk, Job)))
    assert left == sorted(left, reverse=True)
    assert len(left) > 2


def test_a_pass_begins_an_hour_after_the_last_one(clerk: ClerkContext, past: Past) -> None:
    now = 0.0
    sweeping = History(with_settings(clerk, history_days=30), lambda: now)
    sweeping.sweep()
    batch_id = past.batch(31)
    now = 3599.0
    sweeping.sweep()
    assert kept(clerk, Batch) == {batch_id}
    now = 3600.0
    sweeping.sweep()
    assert kept(clerk, Batch) == set()
