"""Two sweepers: the lock lets only one sweep, and one that lost the lock does no harm."""

from __future__ import annotations

import threading
from datetime import timedelta

import redis
from sqlalchemy import event, func, select, update

from core.states import JobState
from db import jobs, quarantine
from db.tables import DEFAULT_TENANT, EngineCrash, Job, Quarantine
from tests.support.rows import make_job
from workers.context import ClerkContext
from workers.maintenance.sweeper import _LOCK, Sweeper

NUM_JOBS = 40


def lose_jobs(clerk: ClerkContext) -> None:
    """Make running jobs whose leases have expired."""
    with clerk.database.begin() as connection:
        for _ in range(NUM_JOBS):
            jobs.claim_job(make_job(connection), "dead", timedelta(seconds=60)).fetch_optional(connection)
        connection.execute(update(Job).values(lease_until=func.now() - timedelta(seconds=1)))


def states(clerk: ClerkContext) -> list[tuple[JobState, int, int]]:
    with clerk.database.begin() as connection:
        rows = connection.execute(select(Job.state, Job.fence, Job.attempt)).all()
    return [(row[0], row[1], row[2]) for row in rows]


def test_nothing_is_swept_while_another_clerk_sweeps(clerk: ClerkContext) -> None:
    lose_jobs(clerk)
    with clerk.database.begin() as leader:
        leader.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        Sweeper(clerk).sweep()
        assert states(clerk) == [(JobState.RUNNING, 1, 1)] * NUM_JOBS
    Sweeper(clerk).sweep()
    assert states(clerk) == [(JobState.QUEUED, 1, 1)] * NUM_JOBS


def test_two_sweepers_at_once_requeue_each_lost_job_once(clerk: ClerkContext, valkey: redis.Redis) -> None:
    """One clerk froze between its lock and its work until another took over."""
    lose_jobs(clerk)
    barrier = threading.Barrier(2)

    def sweep() -> None:
        sweeper = Sweeper(clerk)
        barrier.wait(20)
        for part in (sweeper._sweep_batches, sweeper._sweep_shards, sweeper._sweep_jobs, sweeper._sweep_quarantine):
            part()

    threads = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert states(clerk) == [(JobState.QUEUED, 1, 1)] * NUM_JOBS
    assert valkey.llen("millrace:chat.fake") == NUM_JOBS


def test_a_sweep_at_rest_is_one_statement(clerk: ClerkContext) -> None:
    sweeper, statements = Sweeper(clerk), list[str]()
    event.listen(clerk.database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    event.listen(clerk.database.engine, "commit", lambda _: statements.append("COMMIT"))
    sweeper.sweep()
    assert len(statements) == 1


def test_old_quarantine_entries_and_crashes_are_swept(clerk: ClerkContext) -> None:
    day = timedelta(days=1)
    with clerk.database.begin() as connection:
        for name, age in (("f", 0), ("g", 25)):
            entry = quarantine.QuarantineEntry(
                fingerprint=name, tenant_id=DEFAULT_TENANT, model="fake", endpoint="/v1/embeddings", job_id="j"
            )
            connection.execute(quarantine.record_crash(entry, crashes=2, most=2, kept=day))
            past = Quarantine.crashed_at - timedelta(hours=age)
            connection.execute(update(Quarantine).where(Quarantine.fingerprint == name).values(crashed_at=past))
        connection.execute(quarantine.add_engine_crash("fake", "host/cpu", -11))
        connection.execute(update(EngineCrash).values(crashed_at=EngineCrash.crashed_at - 2 * day))
    Sweeper(clerk).sweep()
    with clerk.database.begin() as connection:
        assert connection.execute(select(Quarantine.fingerprint)).scalars().all() == ["f"]
        assert connection.execute(select(EngineCrash)).all() == []
