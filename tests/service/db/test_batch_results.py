"""Results in the order in which lines end, merged results, and the use of indexes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, func, text, update
from sqlalchemy.dialects import postgresql

from core.states import JobState, ShardState
from db import batch_control, batch_requests, batch_results, batches, shards
from db.batch_requests import LineFilter
from db.batch_results import EndedAt
from db.jobs import Provenance
from db.query import Query
from db.shards import LineResult
from db.tables import Batch, Job, Shard
from tests.support.rows import make_running_batch
from workers.context import Database

LEASE = timedelta(seconds=60)


def claim(connection: Connection) -> Any:
    return shards.claim_next_shard("fake", "me", LEASE).fetch_optional(connection)


def end(connection: Connection, shard_id: str, *, seconds: float | None = 1.0) -> None:
    """Write an answer of one more line of the shard."""
    line = shards.queued_lines(shard_id).fetch_all(connection)[0]
    assert line is not None
    result = LineResult(job_id=line[0], answer="{}", prompt_tokens=3, completion_tokens=2, seconds=seconds)
    fence = connection.execute(
        update(Shard)
        .where(Shard.id == shard_id)
        .values(state=ShardState.RUNNING, owner="me", lease_until=func.now() + LEASE)
        .returning(Shard.fence)
    ).scalar_one()
    connection.execute(shards.write_lines(shard_id, fence, [result], Provenance(build="b", model_hash="h")))


def seen(database: Database, batch_id: str, after: EndedAt) -> list[EndedAt]:
    with database.begin() as connection:
        rows = batch_results.ended_marks(batch_id, after, 10, is_over=False).fetch_all(connection)
    return [EndedAt(row.finish_xact, row.line) for row in rows]


def test_a_reader_misses_no_line_whose_transaction_began_early_and_committed_late(database: Database) -> None:
    with database.begin() as connection:
        batch_id, (early, late) = make_running_batch(connection, [1, 1])
    with database.engine.connect() as slow, slow.begin():
        end(slow, early)
        with database.begin() as quick:
            end(quick, late)
        assert seen(database, batch_id, EndedAt()) == [], "a line that may still come would lie before this one"
    places = seen(database, batch_id, EndedAt())
    assert [place.line for place in places] == [1, 2]
    assert seen(database, batch_id, places[0]) == places[1:]
    assert seen(database, batch_id, places[1]) == []


def test_no_shard_of_a_paused_batch_is_claimed_until_it_is_resumed(connection: Connection) -> None:
    batch_id, (shard_id,) = make_running_batch(connection, [1])
    batch_control.pause(batch_id, "default").fetch_one(connection)
    assert claim(connection) is None
    assert connection.execute(shards.models_with_claimable_shards()).all() == []
    batch_control.resume(batch_id, "default").fetch_one(connection)
    assert claim(connection).id == shard_id


def test_a_foreign_batch_is_not_paused(connection: Connection) -> None:
    batch_id, _ = make_running_batch(connection, [1])
    assert batch_control.pause(batch_id, "somebody").fetch_optional(connection) is None


def test_priority_goes_before_the_deadline(connection: Connection) -> None:
    _, soon = make_running_batch(connection, [1], window_seconds=3600)
    batch_id, late = make_running_batch(connection, [1])
    batch_control.set_urgency(batch_id, "default", priority=1, window=None).fetch_one(connection)
    assert [claim(connection).id for _ in range(2)] == [*late, *soon]


def test_a_window_that_would_be_over_is_not_set(connection: Connection) -> None:
    batch_id, _ = make_running_batch(connection, [1])
    connection.execute(update(Batch).values(created_at=func.now() - timedelta(hours=2)))
    change = batch_control.set_urgency
    assert change(batch_id, "default", priority=None, window=("1h", 3600)).fetch_optional(connection) is None
    row = change(batch_id, "default", priority=None, window=("3h", 10800)).fetch_one(connection)
    assert row.expires_at - row.created_at == timedelta(hours=3)  # type: ignore[operator]


def test_the_best_result_of_a_line_in_its_family_wins(connection: Connection) -> None:
    root, (root_shard,) = make_running_batch(connection, [2])
    retry, (retry_shard,) = make_running_batch(connection, [2])
    connection.execute(update(Batch).where(Batch.id == retry).values(parent_batch_id=root))
    end(connection, root_shard)
    connection.execute(
        update(Job)
        .where(Job.batch_id == root, Job.line == 2)
        .values(state=JobState.FAILED, problem="{}", finished_at=func.now())
    )
    members = list(connection.execute(batch_results.family(retry)).scalars())
    assert members == list(connection.execute(batch_results.family(root)).scalars()) == [root, retry]

    def merged() -> list[tuple[int, JobState]]:
        rows = batch_results.merged_lines(root, members, 0, 10).fetch_all(connection)
        return [(row.line, row.state) for row in rows]

    assert merged() == [(1, JobState.COMPLETED), (2, JobState.FAILED)]
    for _ in range(2):
        end(connection, retry_shard)
    assert merged() == [(1, JobState.COMPLETED), (2, JobState.COMPLETED)]


def test_a_page_of_merged_results_is_full_although_lines_in_front_have_none(connection: Connection) -> None:
    root, (_, late) = make_running_batch(connection, [3, 2])
    end(connection, late)
    assert [row.line for row in batch_results.merged_lines(root, [root], 0, 2).fetch_all(connection)] == [4]


def test_a_table_has_every_line_with_its_best_result_so_far(connection: Connection) -> None:
    root, (root_shard,) = make_running_batch(connection, [3])
    retry, _ = make_running_batch(connection, [3])
    end(connection, root_shard)
    connection.execute(
        update(Job)
        .where(Job.batch_id == root, Job.line == 2)
        .values(state=JobState.FAILED, problem="{}", finished_at=func.now())
    )

    def rows(*, with_body: bool) -> list[Any]:
        page = batch_results.table_lines(root, [root, retry], 0, 10, with_body=with_body)
        return page.fetch_all(connection)

    assert [(row.line, row.custom_id, row.state, row.prompt_tokens) for row in rows(with_body=False)] == [
        (1, "line-1", JobState.COMPLETED, 3),
        (2, "line-2", JobState.FAILED, None),
        (3, "line-3", JobState.QUEUED, None),
    ]
    assert {row.body for row in rows(with_body=False)} == {""}
    assert all("hello" in row.body for row in rows(with_body=True))


def test_parallel_lines_count_their_time_once(connection: Connection) -> None:
    batch_id, (shard_id,) = make_running_batch(connection, [3])
    for seconds in (2.0, 3.0, None):
        end(connection, shard_id, seconds=seconds)
    assert float(connection.execute(batch_requests.active_seconds(batch_id)).scalar_one()) == pytest.approx(3.0)
    count, total, median, *_ = batch_requests.latencies(batch_id).fetch_one(connection)
    assert (count, float(total), float(median)) == (2, pytest.approx(5.0), pytest.approx(2.5))  # type: ignore[arg-type]


def test_the_pace_is_that_of_the_lines_since_the_last_pause(connection: Connection) -> None:
    batch_id, (shard_id,) = make_running_batch(connection, [4])
    for _ in range(3):
        end(connection, shard_id)
    connection.execute(update(Batch).values(in_progress_at=func.now() - timedelta(seconds=100)))
    connection.execute(update(Job).where(Job.line == 1).values(finished_at=func.now() - timedelta(seconds=50)))
    (pace,) = batch_requests.recent_pace([batch_id]).fetch_all(connection)
    assert (pace[1], float(pace[2]), pace[3]) == (3, pytest.approx(100), 15)
    connection.execute(update(Batch).values(resumed_at=func.now() - timedelta(seconds=10)))
    (pace,) = batch_requests.recent_pace([batch_id]).fetch_all(connection)
    assert (pace[1], float(pace[2]), pace[3]) == (2, pytest.approx(10), 10)


@pytest.mark.parametrize("is_new", [True, False])
def test_waiting_lines_are_those_of_the_open_shards(connection: Connection, *, is_new: bool) -> None:
    batch_id, (first, second, _) = make_running_batch(connection, [2, 2, 2])
    if not is_new:  # a batch of a version that did not record the first lines of shards
        connection.execute(update(Shard).values(first_line=None))

    def waiting() -> list[int]:
        found = batch_requests.list_requests(batch_id, LineFilter(status=JobState.QUEUED), 10).fetch_all(connection)
        return [line.line for line in found]

    assert waiting() == [1, 2, 3, 4, 5, 6]
    end(connection, second)
    assert waiting() == [1, 2, 4, 5, 6]
    for _ in range(2):
        end(connection, first)
    done = {"state": ShardState.DONE, "owner": None, "lease_until": None}
    connection.execute(update(Shard).where(Shard.id == first).values(**done))
    assert waiting() == [4, 5, 6]
    connection.execute(update(Shard).values(**done))
    assert waiting() == []


def end_with(connection: Connection, batch_id: str, answers: list[str | None]) -> None:
    """End the lines of a batch, in their order, with these answers; None is a problem."""
    for line, answer in enumerate(answers, start=1):
        ended = update(Job).where(Job.batch_id == batch_id, Job.line == line)
        state = JobState.FAILED if answer is None else JobState.COMPLETED
        problem = "{}" if answer is None else None
        connection.execute(ended.values(state=state, answer=answer, problem=problem, finished_at=func.now()))


@pytest.mark.parametrize(
    ("sizes", "pages"),
    [
        ([10, 10, 10, 10, 10], [[1, 2, 3], [4, 5]]),  # no more lines than were asked for
        ([60, 60, 60, 10, 10], [[1, 2], [3, 4, 5]]),
        ([500, 10, 500, 500], [[1], [2, 3], [4]]),  # at least one, however large it is
        ([0, 0, 100, 0, 0, 0], [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_a_page_of_results_ends_once_its_answers_are_large(
    sizes: list[int], pages: list[list[int]], connection: Connection
) -> None:
    batch_id, _ = make_running_batch(connection, [len(sizes)])
    end_with(connection, batch_id, ["ü" * (size // 2) if size else None for size in sizes])
    seen: list[list[int]] = []
    while page := batches.result_rows(batch_id, seen[-1][-1] if seen else 0, 3, page_bytes=100).fetch_all(connection):
        seen.append([row.line for row in page])
    assert seen == pages


def plan(connection: Connection, query: Query[Any]) -> str:
    statement = query.statement.params(query.parameters or {})  # type: ignore[attr-defined]
    sql = statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    return "\n".join(connection.execute(text(f"EXPLAIN {str(sql).replace(':', chr(92) + ':')}")).scalars())


def test_lists_of_lines_are_served_by_indexes(connection: Connection) -> None:
    made = [make_running_batch(connection, [100] * 5)[0] for _ in range(20)]
    connection.execute(
        update(Job)
        .where(Job.line % 50 == 0)
        .values(state=JobState.FAILED, problem='{"code": "x"}', finished_at=func.now())
    )
    connection.execute(text("ANALYZE jobs"))
    batch_id = made[7]

    def listed(**filters: Any) -> str:
        return plan(connection, batch_requests.list_requests(batch_id, LineFilter(after_line=100, **filters), 20))

    assert "uq_jobs_batch_id_line" in listed()
    assert "uq_jobs_batch_id_line" in listed(query="line-7")
    assert "ix_jobs_batch_state" in listed(status=JobState.FAILED)
    assert "ix_jobs_batch_unanswered" in listed(code="x")
    assert "ix_jobs_batch_custom_id" in plan(connection, batch_requests.find_request(batch_id, "line-7"))
    for is_over in (False, True):
        page = batch_results.ended_marks(batch_id, EndedAt(1, 1), 20, is_over=is_over)
        assert "ix_jobs_batch_finished" in plan(connection, page)
    assert "ix_jobs_batch_finished" in plan(connection, batch_requests.recent_pace([batch_id]))
    assert "uq_jobs_batch_id_line" in plan(
        connection, batch_requests.list_texts(batch_id, LineFilter(), ["hello"], None)
    )
    counted = plan(connection, batch_requests.error_codes(batch_id, 10))
    assert "ix_jobs_batch_unanswered" in counted or "ix_jobs_batch_state" in counted
    assert "Seq Scan" not in plan(connection, batch_requests.timeline(batch_id, datetime.now(UTC), 1.0, 60))
    assert "Seq Scan" not in plan(connection, batch_results.merged_lines(batch_id, made[7:9], 0, 20))
    assert "Seq Scan" not in plan(connection, batch_results.table_lines(batch_id, made[7:9], 0, 20, with_body=True))
