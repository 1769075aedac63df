"""Statements of leases beside their model in `tests.support.lease_model`: after each step both have the same row.

The now() of a transaction does not move, so a test moves the end of a lease towards it.
"""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import Connection, Row, func, select, update

from core.states import JobState, ShardState
from db import batches, jobs, shards
from db.jobs import Provenance
from db.shards import LineResult
from db.tables import Job, Shard
from tests.support import lease_model
from tests.support.hypothesis_profile import examples
from tests.support.lease_model import Leased, LeaseState
from tests.support.rows import make_job, make_running_batch
from workers.context import Database

LEASE = timedelta(seconds=60)
NEVER_WRITTEN = Provenance(build="b", model_hash=None)
WORKERS = st.sampled_from(["a", "b", "c"])
FENCES = st.integers(0, 6)
MAX_ATTEMPTS = 3
PROBLEM = '{"status": 500, "message": "x"}'


class SideBySide(RuleBasedStateMachine):
    """A shard of three lines and a job; fences are drawn, so most writes are those of lost leases."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.connection = database.engine.connect()
        self.transaction = self.connection.begin()
        self.batch_id, (self.shard_id,) = make_running_batch(self.connection, [3])
        self.job_id = make_job(self.connection)
        self.lines = [row[0] for row in shards.queued_lines(self.shard_id).fetch_all(self.connection)]
        self.shard, self.job = Leased(), Leased()
        self.ended: set[str] = set()
        self.now = timedelta()

    def teardown(self) -> None:
        self.transaction.rollback()
        self.connection.close()

    @rule(seconds=st.sampled_from([1, 30, 59, 60, 61, 200]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        for table in (Shard, Job):
            past = table.lease_until - timedelta(seconds=seconds)
            self.connection.execute(update(table).where(table.lease_until.is_not(None)).values(lease_until=past))

    @rule(worker=WORKERS)
    def claim_shard(self, worker: str) -> None:
        row = shards.claim_next_shard("fake", worker, LEASE).fetch_optional(self.connection)
        expected = lease_model.claim(self.shard, worker, self.now, LEASE)
        expected = expected or lease_model.take_over(self.shard, worker, self.now, LEASE)
        assert (row is None) == (expected is None)
        if row is not None and expected is not None:
            assert (row.fence, row.attempt) == (expected.fence, expected.attempt)
        self.shard = expected or self.shard

    @rule(worker=WORKERS)
    def claim_job(self, worker: str) -> None:
        row = jobs.claim_job(self.job_id, worker, LEASE).fetch_optional(self.connection)
        expected = lease_model.claim(self.job, worker, self.now, LEASE)
        assert (row is None) == (expected is None)
        self.job = expected or self.job

    @rule(fence=FENCES)
    def renew(self, fence: int) -> None:
        held = shards.renew_shards({self.shard_id: fence}, LEASE).fetch_all(self.connection)
        expected = lease_model.renew(self.shard, fence, self.now, LEASE)
        assert [row.fence for row in held] == ([] if expected is None else [expected.fence])
        self.shard = expected or self.shard
        jobs_held = jobs.renew_jobs({self.job_id: fence}, LEASE).fetch_all(self.connection)
        expected = lease_model.renew(self.job, fence, self.now, LEASE)
        assert [row.fence for row in jobs_held] == ([] if expected is None else [expected.fence])
        self.job = expected or self.job

    @rule(fence=FENCES, index=st.integers(0, 2))
    def write_a_line(self, fence: int, index: int) -> None:
        line = self.lines[index]
        savepoint = self.connection.begin_nested()
        result = LineResult(job_id=line, answer="{}")
        stored = self.connection.execute(shards.write_lines(self.shard_id, fence, [result], NEVER_WRITTEN)).all()
        counted = shards.count_lines(self.shard_id, fence, [result][: len(stored)]).fetch_all(self.connection)
        assert bool(counted) == lease_model.may_write(self.shard, fence)
        if not counted:
            savepoint.rollback()
            return
        savepoint.commit()
        assert bool(stored) == (line not in self.ended), "each line ends once"
        self.ended.add(line)

    @rule(fence=FENCES, crashes=st.integers(0, 3))
    def mark_a_suspect(self, fence: int, crashes: int) -> None:
        marked = self.connection.execute(shards.mark_lines(self.shard_id, fence, {self.lines[0]: crashes})).all()
        is_open = self.lines[0] not in self.ended
        assert bool(marked) == (lease_model.may_write(self.shard, fence) and is_open)

    @rule(fence=FENCES)
    def leave_shard(self, fence: int) -> None:
        left = self.connection.execute(shards.leave_shard(self.shard_id, fence)).one_or_none()
        expected = lease_model.leave(self.shard, fence, is_work_left=len(self.ended) < len(self.lines))
        assert (left is None) == (expected is None)
        self.shard = expected or self.shard

    @rule(fence=FENCES)
    def release_job(self, fence: int) -> None:
        left = jobs.release_job(self.job_id, fence).fetch_optional(self.connection)
        expected = lease_model.release(self.job, fence)
        assert (left is None) == (expected is None)
        self.job = expected or self.job

    @rule(fence=FENCES, fails=st.booleans())
    def end_job(self, fence: int, fails: bool) -> None:
        end = jobs.complete_job(self.job_id, fence, answer="{}", tokens=(1, 1, 0, 0), provenance=NEVER_WRITTEN)
        end = jobs.fail_job(self.job_id, fence, PROBLEM) if fails else end
        ended = end.fetch_optional(self.connection)
        expected = lease_model.leave(self.job, fence, is_work_left=False)
        assert (ended is None) == (expected is None)
        self.job = expected or self.job

    @rule()
    def sweep_jobs(self) -> None:
        failed = jobs.fail_lost_jobs(MAX_ATTEMPTS, PROBLEM).fetch_all(self.connection)
        again = jobs.requeue_lost_jobs(MAX_ATTEMPTS).fetch_all(self.connection)
        expected = lease_model.expire(self.job, self.now, MAX_ATTEMPTS)
        assert (len(failed), len(again)) == (
            expected is not None and expected.state is LeaseState.DONE,
            expected is not None and expected.state is LeaseState.READY,
        )
        self.job = expected or self.job

    @rule(is_wanted=st.sampled_from([True, True, True, False]))
    def close_shards(self, is_wanted: bool) -> None:
        if not is_wanted:
            closed = self.connection.execute(batches.close_shards(self.batch_id)).rowcount
            expected = lease_model.close(self.shard)
            assert closed == (expected is not None)
            self.shard = expected or self.shard

    @invariant()
    def the_rows_are_what_the_rules_say(self) -> None:
        assert self.leased(Shard, self.shard_id) == self.shard
        assert self.leased(Job, self.job_id) == self.job
        counts = self.connection.execute(select(Shard.lines_completed).where(Shard.id == self.shard_id)).scalar_one()
        assert counts == len(self.ended)

    def leased(self, table: type[Shard] | type[Job], row_id: str) -> Leased:
        remaining = table.lease_until - func.now()
        columns = (table.state, table.owner, table.fence, remaining, table.attempt)
        state, owner, fence, rest, attempt = self.connection.execute(select(*columns).where(table.id == row_id)).one()
        until = None if rest is None else self.now + rest
        return Leased(state=STATES[state], owner=owner, fence=fence, until=until, attempt=attempt)  # type: ignore[arg-type]


STATES = {
    ShardState.READY: LeaseState.READY,
    ShardState.RUNNING: LeaseState.RUNNING,
    ShardState.DONE: LeaseState.DONE,
    JobState.QUEUED: LeaseState.READY,
    JobState.RUNNING: LeaseState.RUNNING,
    JobState.COMPLETED: LeaseState.DONE,
    JobState.FAILED: LeaseState.DONE,
}


def test_statements_do_the_same_as_the_model(database: Database) -> None:
    run_state_machine_as_test(
        lambda: SideBySide(database),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples(60), stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def race(database: Database, claim, rounds: int) -> list[Row]:  # the winners of each round, in order
    """Let two threads call `claim(connection, round)` at the same time; returns the winner of each round."""
    winners: list[Row] = []
    barrier = threading.Barrier(2)

    def run() -> None:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for number in range(rounds):
                barrier.wait(20)
                row = claim(connection, number)
                if row is not None:
                    winners.append(row)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return winners


def test_of_two_who_race_for_a_job_one_wins_a_thousand_times(database: Database) -> None:
    with database.begin() as connection:
        made = [make_job(connection) for _ in range(1000)]

    def claim(connection: Connection, number: int) -> Any:  # Any: a claimed row
        owner = threading.current_thread().name
        return jobs.claim_job(made[number], owner, LEASE).fetch_optional(connection)

    winners = race(database, claim, 1000)
    assert Counter(row.id for row in winners) == dict.fromkeys(made, 1)
    assert {row.fence for row in winners} == {1}


@pytest.mark.parametrize("was_held", [False, True], ids=["free", "abandoned"])
def test_of_two_who_race_for_a_shard_one_wins_a_thousand_times(database: Database, was_held: bool) -> None:
    """The winner releases the shard before the next round."""
    with database.begin() as connection:
        _, (shard_id,) = make_running_batch(connection, [1])
    done = threading.Barrier(2)

    def claim(connection: Connection, number: int) -> Any:  # Any: a claimed row
        owner = threading.current_thread().name
        row = shards.claim_next_shard("fake", owner, LEASE).fetch_optional(connection)
        done.wait(20)
        if row is not None and was_held:
            late = func.now() - timedelta(seconds=1)
            connection.execute(update(Shard).where(Shard.id == shard_id).values(lease_until=late))
        elif row is not None:
            connection.execute(shards.leave_shard(shard_id, row.fence))
        return row

    winners = race(database, claim, 500)
    assert [row.fence for row in winners] == list(range(1, 501))
