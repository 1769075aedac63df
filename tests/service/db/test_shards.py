"""Shards: claims, fences and writes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import msgspec
from sqlalchemy import Connection, func, select, text, update

from core.states import BatchState, JobState, ShardState
from db import batches, shards
from db.jobs import Provenance
from db.shards import LineResult
from db.tables import Batch, Job, Shard
from tests.support.rows import make_batch, make_running_batch
from tests.support.stack import wait_for
from workers.context import Database

LEASE = timedelta(seconds=60)


def claim(connection: Connection, owner: str = "me", model: str = "fake"):
    return shards.claim_next_shard(model, owner, LEASE).fetch_optional(connection)


def lines_of(connection: Connection, shard_id: str) -> list[str]:
    return [row[0] for row in shards.queued_lines(shard_id).fetch_all(connection)]


def write(connection: Connection, shard_id: str, fence: int, results: list[LineResult]) -> BatchState | None:
    statement = shards.write_lines(shard_id, fence, results, Provenance(build="b", model_hash="h"))
    stored = set(connection.execute(statement).scalars())
    written = [result for result in results if result.job_id in stored]
    batch = shards.count_lines(shard_id, fence, written).fetch_optional(connection)
    return None if batch is None else batch.status


def answers(ids: list[str]) -> list[LineResult]:
    return [LineResult(job_id=one, answer="{}", prompt_tokens=3, completion_tokens=2, cached_tokens=1) for one in ids]


def test_results_are_stored_as_they_are_whatever_characters_they_have(connection: Connection) -> None:
    _, (shard_id,) = make_running_batch(connection, [4])
    assert claim(connection) is not None
    made = lines_of(connection, shard_id)
    hard = msgspec.json.encode({"text": 'a "quoted" \\ line\n\r\t\u2028\x85,{NULL}\u00e9\U0001f600'}).decode()
    results = [
        LineResult(job_id=made[0], answer=hard, prompt_tokens=3, reasoning_tokens=1, seconds=0.25),
        LineResult(job_id=made[1], problem=hard),
        LineResult(job_id=made[2], answer="NULL", seconds=1e-7),
        LineResult(job_id=made[3], problem="{}", completion_tokens=7),
    ]
    assert write(connection, shard_id, 1, results) is BatchState.IN_PROGRESS
    columns = (Job.answer, Job.problem, Job.prompt_tokens, Job.completion_tokens, Job.reasoning_tokens, Job.started_at)
    rows = connection.execute(select(*columns).where(Job.id.in_(made)).order_by(Job.position)).all()
    assert [row[:5] for row in rows] == [
        (hard, None, 3, 0, 1),
        (None, hard, 0, 0, 0),
        ("NULL", None, 0, 0, 0),
        (None, "{}", 0, 7, 0),
    ]
    assert [row.started_at is None for row in rows] == [False, True, False, True]


def test_two_workers_never_take_the_same_shard(database: Database) -> None:
    with database.begin() as connection:
        make_running_batch(connection, [1] * 24)

    def take_all(owner: str) -> list[str]:
        taken = []
        while True:
            with database.begin() as connection:
                row = claim(connection, owner)
            if row is None:
                return taken
            taken.append(row.id)

    with ThreadPoolExecutor(4) as threads:
        taken = [one for many in threads.map(take_all, "abcd") for one in many]
    assert len(taken) == len(set(taken)) == 24


def test_shards_of_a_batch_are_taken_in_order(connection: Connection) -> None:
    _, made = make_running_batch(connection, [1, 1, 1])
    assert [claim(connection).id for _ in range(3)] == made
    assert claim(connection) is None


def test_the_earliest_deadline_is_served_first(connection: Connection) -> None:
    _, late = make_running_batch(connection, [1], window_seconds=86400)
    _, soon = make_running_batch(connection, [1], window_seconds=3600)
    assert [claim(connection).id for _ in range(2)] == [*soon, *late]


def test_only_shards_of_the_asked_model_are_taken(connection: Connection) -> None:
    make_running_batch(connection, [1], model="other")
    assert claim(connection) is None


def test_shards_of_a_batch_that_is_cancelled_are_not_taken(connection: Connection) -> None:
    batch_id, _ = make_running_batch(connection, [1])
    batches.move(batch_id, BatchState.CANCELLING).fetch_optional(connection)
    assert claim(connection) is None


def test_a_shard_whose_lease_ran_out_goes_to_the_next_with_a_higher_fence(connection: Connection) -> None:
    _, (shard_id,) = make_running_batch(connection, [2])
    assert claim(connection).fence == 1
    assert claim(connection) is None
    connection.execute(update(Shard).values(lease_until=func.now() - timedelta(seconds=1)))
    assert claim(connection, "other").fence == 2
    assert write(connection, shard_id, 1, []) is None, "the first holder cannot count any more"


def test_results_are_written_once_and_counted_once(connection: Connection) -> None:
    _, (shard_id,) = make_running_batch(connection, [3])
    fence = claim(connection).fence
    first, second, third = lines_of(connection, shard_id)
    failed = LineResult(job_id=third, problem='{"status":500,"message":"x"}')
    assert write(connection, shard_id, fence, [*answers([first]), failed]) == BatchState.IN_PROGRESS
    assert write(connection, shard_id, fence, answers([first, second])) == BatchState.IN_PROGRESS
    row = connection.execute(select(Shard).where(Shard.id == shard_id)).one()
    assert (row.lines_completed, row.lines_failed, row.prompt_tokens, row.completion_tokens) == (2, 1, 6, 4)
    assert lines_of(connection, shard_id) == []


def test_results_have_their_provenance(connection: Connection) -> None:
    _, (shard_id,) = make_running_batch(connection, [1])
    fence = claim(connection).fence
    provenance = Provenance(build="b", model_hash="m", settings_hash="s", template_hash="t", model_parameters="{}")
    connection.execute(shards.write_lines(shard_id, fence, answers(lines_of(connection, shard_id)), provenance))
    columns = (Job.engine_build, Job.model_hash, Job.settings_hash, Job.template_hash, Job.model_parameters)
    assert connection.execute(select(*columns)).one() == ("b", "m", "s", "t", "{}")


def test_a_line_of_another_shard_cannot_be_written(connection: Connection) -> None:
    _, (mine, other) = make_running_batch(connection, [1, 1])
    fence = claim(connection).fence
    write(connection, mine, fence, answers(lines_of(connection, other)))
    assert len(lines_of(connection, other)) == 1


def test_a_shard_released_early_is_ready_and_keeps_its_attempt_count(connection: Connection) -> None:
    _, (shard_id,) = make_running_batch(connection, [2])
    fence = claim(connection).fence
    write(connection, shard_id, fence, answers(lines_of(connection, shard_id)[:1]))
    assert connection.execute(shards.leave_shard(shard_id, fence)).one()[0] == ShardState.READY
    again = claim(connection)
    assert again.fence == 2
    assert len(lines_of(connection, shard_id)) == 1
    write(connection, shard_id, 2, answers(lines_of(connection, shard_id)))
    assert connection.execute(shards.leave_shard(shard_id, 2)).one()[0] == ShardState.DONE


def test_lines_come_in_the_order_of_the_plan_and_a_repeated_body_only_once(connection: Connection) -> None:
    _, (shard_id,) = make_running_batch(connection, [5])
    fence = claim(connection).fence
    made = lines_of(connection, shard_id)
    for place, (job_id, body) in enumerate(zip(reversed(made), ["x", "x", "y", "x", "x"], strict=True)):
        connection.execute(update(Job).where(Job.id == job_id).values(position=place, body=body))
    rows = shards.queued_lines(shard_id).fetch_all(connection)
    assert [row[0] for row in rows] == made[::-1]
    assert [row[1] for row in rows] == ["x", None, "y", "x", None]
    connection.execute(shards.write_lines(shard_id, fence, answers(made[-1:]), Provenance(build="b", model_hash=None)))
    first = shards.queued_lines(shard_id).fetch_all(connection)[0]
    assert first is not None
    assert first[1] == "x", "the line it was the same as is not there any more"


def test_the_last_shard_lets_the_batch_finalize_and_no_other(connection: Connection) -> None:
    batch_id, made = make_running_batch(connection, [1, 1])
    for shard_id in made:
        assert batches.begin_finalizing(batch_id).fetch_optional(connection) is None
        assert not connection.execute(batches.may_be_over(batch_id)).scalar_one()
        fence = claim(connection).fence
        write(connection, shard_id, fence, answers(lines_of(connection, shard_id)))
        connection.execute(shards.leave_shard(shard_id, fence))
    assert connection.execute(batches.may_be_over(batch_id)).scalar_one()
    assert batches.begin_finalizing(batch_id).fetch_optional(connection) is not None
    assert connection.execute(batches.is_ready_to_finalize(batch_id)).scalar_one()


def test_a_closed_shard_takes_no_more_writes(connection: Connection) -> None:
    batch_id, (shard_id,) = make_running_batch(connection, [1])
    fence = claim(connection).fence
    connection.execute(batches.close_shards(batch_id))
    assert write(connection, shard_id, fence, answers(lines_of(connection, shard_id))) is None


def is_anyone_blocked(database: Database) -> bool:
    with database.begin() as connection:
        return bool(connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


def close(database: Database, batch_id: str) -> int:
    """End a batch whose window is over, as the clerk does; returns the number of its open lines."""
    with database.begin() as connection:
        connection.execute(batches.close_shards(batch_id))
        return connection.execute(batches.end_leftover_lines(batch_id, JobState.EXPIRED, "{}")).rowcount


def test_a_batch_that_ends_beside_a_group_of_results_waits_for_it_and_keeps_it(database: Database) -> None:
    """Both lock the shard before its lines, so that neither ends in a deadlock."""
    with database.begin() as connection:
        batch_id, (shard_id,) = make_running_batch(connection, [5])
        fence = claim(connection).fence
    with ThreadPoolExecutor(1) as beside, database.engine.connect() as worker:
        results = answers(lines_of(worker, shard_id)[:3])
        worker.execute(shards.write_lines(shard_id, fence, results, Provenance(build="b", model_hash="h")))
        closing = beside.submit(close, database, batch_id)
        wait_for(lambda: is_anyone_blocked(database), "the clerk meets the results")
        assert shards.count_lines(shard_id, fence, results).fetch_optional(worker) is not None
        worker.commit()
        assert closing.result(10) == 2
    with database.begin() as connection:
        states = connection.execute(select(Job.state).order_by(Job.position)).scalars().all()
    assert states == [JobState.COMPLETED] * 3 + [JobState.EXPIRED] * 2


def test_results_that_come_beside_the_end_of_their_batch_wait_for_it_and_are_refused(database: Database) -> None:
    with database.begin() as connection:
        batch_id, (shard_id,) = make_running_batch(connection, [5])
        fence = claim(connection).fence
        results = answers(lines_of(connection, shard_id))

    def write_late() -> BatchState | None:
        with database.begin() as connection:
            return write(connection, shard_id, fence, results)

    with ThreadPoolExecutor(1) as beside, database.engine.connect() as clerk:
        clerk.execute(batches.close_shards(batch_id))
        writing = beside.submit(write_late)
        wait_for(lambda: is_anyone_blocked(database), "the results meet the clerk")
        clerk.execute(batches.end_leftover_lines(batch_id, JobState.EXPIRED, "{}"))
        clerk.commit()
        assert writing.result(10) is None
    with database.begin() as connection:
        assert set(connection.execute(select(Job.state)).scalars()) == {JobState.EXPIRED}


def test_no_line_is_touched_under_a_fence_that_is_lost(connection: Connection) -> None:
    _, (shard_id,) = make_running_batch(connection, [2])
    fence = claim(connection).fence
    results = answers(lines_of(connection, shard_id))
    for wrong in (fence - 1, fence + 1):
        statement = shards.write_lines(shard_id, wrong, results, Provenance(build="b", model_hash="h"))
        assert connection.execute(statement).all() == []
    assert write(connection, shard_id, fence, results) is BatchState.IN_PROGRESS


def test_a_window_that_is_over_ends_the_batch_as_expired(connection: Connection) -> None:
    batch_id, _ = make_running_batch(connection, [1])
    assert connection.execute(batches.expire_batches()).all() == []
    connection.execute(update(Batch).values(expires_at=func.now() - timedelta(seconds=1)))
    assert connection.execute(batches.expire_batches()).all() == [(batch_id,)]
    row = connection.execute(select(Batch.status, Batch.outcome)).one()
    assert tuple(row) == (BatchState.FINALIZING, BatchState.EXPIRED)


def test_illegal_moves_do_nothing(connection: Connection) -> None:
    batch_id = make_batch(connection)
    for state in (BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED):
        assert batches.move(batch_id, state).fetch_optional(connection) is None, state
    assert batches.move(batch_id, BatchState.FAILED).fetch_optional(connection) is not None
    assert batches.move(batch_id, BatchState.CANCELLING).fetch_optional(connection) is None


def test_lines_that_never_ran_end_with_their_batch(connection: Connection) -> None:
    batch_id, (shard_id,) = make_running_batch(connection, [2])
    fence = claim(connection).fence
    write(connection, shard_id, fence, answers(lines_of(connection, shard_id)[:1]))
    connection.execute(
        batches.end_leftover_lines(batch_id, JobState.CANCELLED, '{"status":0,"message":"x","code":"batch_cancelled"}')
    )
    states = connection.execute(select(Job.state).order_by(Job.line)).scalars().all()
    assert states == [JobState.COMPLETED, JobState.CANCELLED]
