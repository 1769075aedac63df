"""Finalize a batch: write its two result files in input order and end it. Re-runnable: the same rows make the same bytes.

The files are in the store before the transaction that names them commits; a client sees nothing before that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import Connection

from core import ids
from core.counters import CounterName
from core.errors import Problem
from core.failpoints import Point, failpoint
from core.schemas.batch import answered_line, failed_line, unrun_line_problem
from core.schemas.webhooks import EventType
from core.states import BatchState, JobState
from db import batches, files
from db.batches import BatchRow, ResultRow
from db.connections import allow_long_transaction
from workers.batches.batch_trace import batch_ended, batch_work
from workers.context import ClerkContext
from workers.runtime.clerk_metrics import TASK_FAILURES, TASK_SECONDS
from workers.runtime.recorder import timed
from workers.runtime.webhook_outbox import record_webhook_event

log = structlog.get_logger()

_PAGE_LINES: Final = 500
_TOKENS: Final = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
_OUTPUT_PURPOSE: Final = "batch_output"


@dataclass(frozen=True, slots=True)
class _Ending:
    """A batch status, and the state, the counter and the problem of lines that never ran."""

    status: BatchState
    line_state: JobState
    lines: CounterName
    problem: Problem


_ENDINGS: Final = {
    BatchState.CANCELLED: _Ending(
        BatchState.CANCELLED,
        JobState.CANCELLED,
        CounterName.LINES_CANCELLED,
        unrun_line_problem("batch_cancelled", "The batch was cancelled before this line ran."),
    ),
    BatchState.EXPIRED: _Ending(
        BatchState.EXPIRED,
        JobState.EXPIRED,
        CounterName.LINES_EXPIRED,
        unrun_line_problem("batch_expired", "The batch's window was over before this line ran."),
    ),
}

_EVENTS: Final[dict[BatchState, EventType]] = {
    BatchState.COMPLETED: "batch.completed",
    BatchState.EXPIRED: "batch.expired",
    BatchState.CANCELLED: "batch.cancelled",
}


_COUNTERS: Final = {
    BatchState.COMPLETED: CounterName.BATCHES_COMPLETED,
    BatchState.EXPIRED: CounterName.BATCHES_EXPIRED,
    BatchState.CANCELLED: CounterName.BATCHES_CANCELLED,
}


@timed(TASK_SECONDS, TASK_FAILURES, "finalize")
def finalize(context: ClerkContext, batch_id: str) -> None:
    """End a finalizing or cancelling batch; do nothing in any other status, or when another clerk finalizes it."""
    with ExitStack() as working:
        with context.database.begin() as connection:
            connection.execute(allow_long_transaction())
            if not connection.execute(batches.try_lock(batch_id)).scalar_one():
                return
            batch = batches.find_batch_of_any_tenant(batch_id).fetch_optional(connection)
            if batch is None or batch.status not in (BatchState.FINALIZING, BatchState.CANCELLING):
                return
            working.enter_context(batch_work("finalize", batch))
            to = BatchState.CANCELLED if batch.status is BatchState.CANCELLING else batch.outcome
            assert to is not None, "a batch that is finalizing has an outcome"
            num_left = 0
            connection.execute(batches.close_shards(batch_id))
            if (ending := _ENDINGS.get(to)) is not None:
                problem = ending.problem.to_json()
                num_left = connection.execute(batches.end_leftover_lines(batch_id, ending.line_state, problem)).rowcount
            columns, totals = _write_files(context, connection, batch)
            failpoint(Point.FINALIZE_STORED)
            move = batches.move(batch_id, to, **columns, **totals)
            if move.fetch_optional(connection) is None:  # cancelled meanwhile: the files are not its own
                connection.rollback()
                context.files.delete(*columns.values())
                context.tickets.finalize(batch_id)
                return
            record_webhook_event(connection, batch.tenant_id, _EVENTS[to], batch_id)
            failpoint(Point.FINALIZE_ENDING)
        failpoint(Point.FINALIZE_COMMITTED)
        log.info("batch_ended", batch=batch_id, status=to)
        batch_ended(batch, to, totals)
        context.counters.add(_COUNTERS[to])
        if ending is not None:
            context.counters.add(ending.lines, number=num_left)
        context.tickets.deliver(batch_id)


class _Totals:
    """Counts the lines of a batch themselves, rather than its shards' counts."""

    def __init__(self) -> None:
        self.columns = dict.fromkeys(("lines", "lines_completed", "lines_failed", *_TOKENS), 0)

    def add(self, row: ResultRow) -> None:
        """Count a line that has ended."""
        self.columns["lines"] += 1
        self.columns["lines_failed" if row.answer is None else "lines_completed"] += 1
        for name in _TOKENS:
            self.columns[name] += getattr(row, name) or 0


def _write_files(
    context: ClerkContext, connection: Connection, batch: BatchRow
) -> tuple[dict[str, str], dict[str, int]]:
    """Write both files and delete an empty one. Returns the columns of the batch that name them, and those of its counts."""
    output_id, error_id, totals = ids.new_id(ids.FILE), ids.new_id(ids.FILE), _Totals()
    with ExitStack() as stack:
        output = stack.enter_context(context.files.write(output_id))
        errors = stack.enter_context(context.files.write(error_id))
        for row in _result_rows(connection, batch.id):
            totals.add(row)
            (errors if row.answer is None else output).write(_result_line(row))
        sizes = {"output": output.tell(), "error": errors.tell()}
    columns = {}
    for kind, file_id in (("output", output_id), ("error", error_id)):
        if sizes[kind] == 0:
            context.files.delete(file_id)
            continue
        columns[f"{kind}_file_id"] = file_id
        connection.execute(
            files.add_file(
                id=file_id,
                tenant_id=batch.tenant_id,
                purpose=_OUTPUT_PURPOSE,
                filename=f"{batch.id}_{kind}.jsonl",
                bytes=sizes[kind],
                expires_at=_expiry(context, batch.output_expires_seconds),
            )
        )
    return columns, totals.columns


def _result_rows(connection: Connection, batch_id: str) -> Iterator[ResultRow]:
    """Yield all lines in input order, read a page at a time, so that memory stays flat."""
    after = 0
    while page := batches.result_rows(batch_id, after, _PAGE_LINES).fetch_all(connection):
        after = page[-1].line
        yield from page


def _result_line(row: ResultRow) -> bytes:
    if row.answer is not None:
        return answered_line(row.id, row.custom_id, row.answer)
    assert row.problem is not None, "a line that ended without an answer has a problem"
    return failed_line(row.id, row.custom_id, Problem.from_json(row.problem))


def _expiry(context: ClerkContext, seconds: int | None) -> datetime:
    kept = timedelta(seconds=seconds) if seconds else timedelta(days=context.settings.file_days)
    return datetime.now(UTC) + kept
