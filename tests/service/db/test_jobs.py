"""Moves of a job, each a conditional UPDATE."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import Connection, func, select, text, update

from core.states import JobState
from db import jobs
from db.tables import DEFAULT_TENANT, Job, UsageDaily
from tests.support.rows import make_job
from workers.context import Database

LEASE = timedelta(seconds=60)


def state_of(connection: Connection, job_id: str) -> str:
    return str(connection.execute(select(Job.state).where(Job.id == job_id)).scalar_one())


def claim(connection: Connection, job_id: str, owner: str = "me"):
    return jobs.claim_job(job_id, owner, LEASE).fetch_optional(connection)


def expire_lease(connection: Connection, job_id: str) -> None:
    connection.execute(update(Job).where(Job.id == job_id).values(lease_until=func.now() - timedelta(seconds=1)))


def complete(connection: Connection, job_id: str, fence: int) -> bool:
    done = jobs.complete_job(
        job_id, fence, answer="{}", tokens=(1, 2, 0, 0), provenance=jobs.Provenance(build="b", model_hash=None)
    )
    return done.fetch_optional(connection) is not None


def test_a_job_is_claimed_once(database: Database) -> None:
    with database.begin() as connection:
        ids = [make_job(connection) for _ in range(20)]

    def try_all(owner: str) -> int:
        won = 0
        for job_id in ids:
            with database.begin() as connection:
                won += claim(connection, job_id, owner) is not None
        return won

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(try_all, "abcd")) == 20


def test_a_claim_returns_the_columns_that_a_worker_needs(connection: Connection) -> None:
    job_id = make_job(connection, "fake", '{"a": 1}')
    row = claim(connection, job_id)
    assert (row.id, row.model, row.body, row.attempt, row.fence) == (job_id, "fake", '{"a": 1}', 1, 1)


def test_an_answer_is_taken_once_and_only_under_the_last_fence(connection: Connection) -> None:
    job_id = make_job(connection)
    claim(connection, job_id)
    expire_lease(connection, job_id)
    assert jobs.requeue_lost_jobs(3).fetch_all(connection) == [(job_id, "fake")]
    second = claim(connection, job_id, "other")
    assert second.fence == 2
    assert not complete(connection, job_id, 1), "the first worker has lost it"
    assert complete(connection, job_id, 2)
    assert not complete(connection, job_id, 2)
    assert state_of(connection, job_id) == JobState.COMPLETED


def test_a_job_with_a_lease_is_left_alone(connection: Connection) -> None:
    job_id = make_job(connection)
    claim(connection, job_id)
    assert jobs.requeue_lost_jobs(3).fetch_all(connection) == []
    assert claim(connection, job_id, "other") is None


def test_a_job_that_keeps_losing_its_workers_fails(connection: Connection) -> None:
    job_id = make_job(connection)
    for _ in range(3):
        assert claim(connection, job_id) is not None
        expire_lease(connection, job_id)
        jobs.requeue_lost_jobs(3).fetch_optional(connection)
    assert [row[0] for row in jobs.fail_lost_jobs(3, '{"status": 500, "message": "x"}').fetch_all(connection)] == [
        job_id
    ]
    assert state_of(connection, job_id) == JobState.FAILED


def test_a_released_job_keeps_its_attempt_count_but_gets_a_new_fence(connection: Connection) -> None:
    job_id = make_job(connection)
    claim(connection, job_id)
    assert jobs.release_job(job_id, 1).fetch_one(connection) == (job_id, "fake")
    again = claim(connection, job_id)
    assert (again.attempt, again.fence) == (1, 2)


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_is_asked(connection: Connection) -> None:
    waiting, running = make_job(connection), make_job(connection)
    claim(connection, running)
    assert jobs.cancel_queued_job(waiting).fetch_optional(connection) is not None
    assert jobs.cancel_queued_job(running).fetch_optional(connection) is None
    connection.execute(jobs.request_cancel(running))
    held = jobs.renew_jobs({waiting: 1, running: 1}, LEASE).fetch_all(connection)
    assert held == [(running, 1, True)]
    assert claim(connection, waiting) is None


def test_a_cancelled_job_whose_worker_died_ends_as_cancelled(connection: Connection) -> None:
    job_id = make_job(connection)
    claim(connection, job_id)
    connection.execute(jobs.request_cancel(job_id))
    expire_lease(connection, job_id)
    assert jobs.requeue_lost_jobs(3).fetch_all(connection) == []
    assert len(jobs.cancel_lost_jobs().fetch_all(connection)) == 1


def test_a_claim_without_a_reply_is_not_renewed_with_the_others(connection: Connection) -> None:
    known, unheard, lost = (make_job(connection) for _ in range(3))
    for job_id in (known, unheard, lost):
        claim(connection, job_id)
    held = {known: 1, lost: 0}
    assert [row[0] for row in jobs.renew_jobs(held, LEASE).fetch_all(connection)] == [known]


def test_a_job_of_another_tenant_is_not_found(connection: Connection) -> None:
    job_id = make_job(connection)
    assert jobs.find_job(job_id, "other").fetch_optional(connection) is None
    assert jobs.find_job(job_id, DEFAULT_TENANT).fetch_optional(connection) is not None


def test_overdue_jobs_are_those_whose_ticket_is_old(connection: Connection) -> None:
    old, _ = make_job(connection), make_job(connection)
    connection.execute(update(Job).where(Job.id == old).values(dispatched_at=func.now() - timedelta(minutes=1)))
    statement = jobs.overdue_jobs(["fake"], timedelta(seconds=15), 10)
    assert statement.fetch_all(connection) == [(old, "fake")]
    connection.execute(jobs.mark_jobs_dispatched([old]))
    assert statement.fetch_all(connection) == []


def test_usage_adds_up_per_tenant_model_and_day(connection: Connection) -> None:
    for tokens in (3, 4):
        connection.execute(
            jobs.add_usage(
                DEFAULT_TENANT, "fake", requests=1, prompt_tokens=tokens, completion_tokens=1, cached_tokens=0
            )
        )
    rows = connection.execute(select(UsageDaily.requests, UsageDaily.prompt_tokens, UsageDaily.completion_tokens)).all()
    assert rows == [(2, 7, 2)]


def test_looking_for_overdue_jobs_uses_its_index(connection: Connection) -> None:
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    compiled = jobs.overdue_jobs(["fake"], timedelta(seconds=15), 10).statement.compile(  # type: ignore[attr-defined]
        connection, compile_kwargs={"literal_binds": True}
    )
    plan = "\n".join(connection.execute(text(f"EXPLAIN {compiled}")).scalars())
    assert "ix_jobs_chat_queue" in plan
