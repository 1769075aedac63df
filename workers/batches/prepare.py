"""Prepare a batch: read its file, plan it and write its jobs and shards, or fail it with a list of its bad lines.

The file is read twice: in order, when each line is checked and planned (see `first_pass`), then in the plan's order, when lines
are copied into rows. Everything happens in one transaction, so a clerk that is killed leaves nothing behind
and the next one starts afresh. A line with a wrong envelope fails the file, before the copy begins, since Postgres logs a COPY
that is broken off as an ERROR. A line whose body the endpoint would reject, or that cannot be read, is a failed job.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import BinaryIO, Final

import structlog
from sqlalchemy import Connection, select

from core import ids
from core.api_keys import estimated_tokens
from core.counters import CounterName
from core.errors import Problem
from core.failpoints import Point, failpoint
from core.models.model_files import ModelCatalog
from core.readiness import model_state
from core.schemas.batch import NO_BODY, CheckedLine, read_checked_line
from core.schemas.objects import BatchError, BatchErrors
from core.states import BatchState, JobState
from db import batches, workers
from db.batches import BatchRow
from db.bulk_insert import LineRow, ShardRow, copy_lines, copy_shards
from db.connections import allow_long_transaction
from workers.batches.batch_trace import batch_ended, batch_work
from workers.batches.first_pass import BadFile, FailedLine, FirstPass
from workers.batches.line_reader import read_span
from workers.batches.plan import PlannedShard
from workers.batches.quota import check_quota, read_quota
from workers.context import ClerkContext
from workers.runtime.clerk_metrics import TASK_FAILURES, TASK_SECONDS
from workers.runtime.recorder import timed
from workers.runtime.webhook_outbox import record_webhook_event

log = structlog.get_logger()

_COPY_LINES: Final = 1000


@timed(TASK_SECONDS, TASK_FAILURES, "prepare")
def prepare(context: ClerkContext, batch_id: str) -> None:
    """Move a validating batch to in_progress or failed; do nothing when it is past that, or another clerk prepares it."""
    with context.database.begin() as connection:
        waiting = batches.find_batch_of_any_tenant(batch_id).fetch_optional(connection)
    if waiting is None or waiting.status != BatchState.VALIDATING:
        return
    with ExitStack() as working:
        try:  # the file first: from object storage it may take longer to arrive than a transaction may idle
            with _open(context, waiting.input_file_id) as stream, context.database.begin() as connection:
                connection.execute(allow_long_transaction())
                if not connection.execute(batches.try_lock(batch_id)).scalar_one():
                    return
                batch = batches.find_batch_of_any_tenant(batch_id).fetch_optional(connection)
                if batch is None or batch.status != BatchState.VALIDATING:
                    return
                working.enter_context(batch_work("prepare", batch))
                copied = _copy_file(context, connection, batch, stream)
                failpoint(Point.PREPARE_COPIED)
        except BadFile as bad:
            _fail(context, waiting, bad)
            return
        log.info("batch_prepared", batch=batch_id, shards=len(copied.shards))
        context.counters.add(CounterName.LINES_REJECTED, number=copied.num_rejected)
        failpoint(Point.PREPARE_COMMITTED)
        _send_tickets(context, batch_id, copied.shards)
        failpoint(Point.PREPARE_TICKETED)


@dataclass(frozen=True, slots=True)
class _Copied:
    """The shards of a batch, and the number of its lines that failed already."""

    shards: list[ShardRow]
    num_rejected: int


def _copy_file(context: ClerkContext, connection: Connection, batch: BatchRow, stream: BinaryIO) -> _Copied:
    """Write all rows of a batch, or none when it was cancelled meanwhile."""
    quota = read_quota(connection, batch.tenant_id, batch.key_id)
    catalog = context.look_at_models().only(quota.models)
    down = _stopped(context, connection, catalog)

    def keep_alive() -> None:
        connection.execute(select(1))

    with closing(FirstPass(context.settings, batch.endpoint, catalog, down, keep_alive)) as first:
        first.read(stream)
        tokens = estimated_tokens(first.num_bytes)
        if (excess := check_quota(connection, quota, lines=len(first.spans), tokens=tokens)) is not None:
            raise BadFile([excess], 1)
        rows = _Rows(batch, first, stream)
        _copy(connection, rows.lines())
        copy_shards(connection, rows.shards)
        start = batches.start(
            batch.id,
            lines=first.num_lines,
            lines_failed=len(first.failed),
            model=first.model,
            queued_tokens=tokens,
        )
    if start.fetch_optional(connection) is None:
        connection.rollback()
        return _Copied([], 0)
    return _Copied(rows.shards, len(first.failed))


def _copy(connection: Connection, rows: Iterator[LineRow]) -> None:
    """Copy rows, some of them with each statement, so that none takes long."""
    for first in rows:
        with copy_lines(connection) as copy:
            for row in chain((first,), islice(rows, _COPY_LINES - 1)):
                copy.write_row(row)


def _stopped(context: ClerkContext, connection: Connection, catalog: ModelCatalog) -> frozenset[str]:
    """The models with a share of an alias whose engines do not start: its lines go to the others."""
    names = [model.name for model in catalog.models if model.weight is not None]
    seen = workers.list_workers().fetch_all(connection) if names else []
    silence_seconds = context.settings.silence_seconds
    return frozenset(name for name in names if model_state(seen, name, silence_seconds).is_stopped)


def _open(context: ClerkContext, file_id: str) -> BinaryIO:
    """Open the input file. Its row may be deleted by now; its bytes are kept until the batch has ended."""
    try:
        return context.files.open(file_id)
    except FileNotFoundError:
        missing = BatchError(code="invalid_request", message="The input file does not exist any more.", param="file_id")
        raise BadFile([missing], 1) from None


class _Rows:
    """Makes the rows of one batch; `shards` are complete after the last line."""

    def __init__(self, batch: BatchRow, first: FirstPass, stream: BinaryIO) -> None:
        self._batch = batch
        self._first = first
        self._stream = stream
        self._num_placed = 0
        self.shards: list[ShardRow] = []

    def lines(self) -> Iterator[LineRow]:
        """Yield the lines that have failed already, then each shard's lines in their order."""
        for line in self._first.failed:
            yield self._failed(line)
        for shard in self._first.shards:
            yield from self._placed(shard)

    def _failed(self, line: FailedLine) -> LineRow:
        body = NO_BODY if line.span is None else read_checked_line(read_span(self._stream, line.span)).body
        return self._row(line.number, CheckedLine(line.custom_id, body), model=line.model, problem=line.problem)

    def _placed(self, planned: PlannedShard) -> Iterator[LineRow]:
        shard_id, batch, first_line = ids.new_id(ids.SHARD), self._batch, sys.maxsize
        for index in planned.lines:
            span = self._first.spans[index]
            first_line = min(first_line, span.number)
            line = read_checked_line(read_span(self._stream, span))
            yield self._row(span.number, line, model=planned.model, shard_id=shard_id)
            self._num_placed += 1
        self.shards.append(
            ShardRow(
                id=shard_id,
                batch_id=batch.id,
                tenant_id=batch.tenant_id,
                model=planned.model,
                position=len(self.shards),
                lines=len(planned.lines),
                first_line=first_line,
            )
        )

    def _row(
        self, number: int, line: CheckedLine, *, model: str, shard_id: str | None = None, problem: Problem | None = None
    ) -> LineRow:
        return LineRow(
            id=ids.new_id(ids.BATCH_LINE),
            tenant_id=self._batch.tenant_id,
            batch_id=self._batch.id,
            shard_id=shard_id,
            position=self._num_placed if shard_id else None,
            line=number,
            custom_id=line.custom_id,
            model=model,
            state=JobState.FAILED if problem else JobState.QUEUED,
            body=line.body,
            problem=problem.to_json() if problem else None,
            finished_at="now" if problem else None,
            endpoint=self._batch.endpoint,
        )


def _fail(context: ClerkContext, batch: BatchRow, bad: BadFile) -> None:
    batch_id, listed = batch.id, bad.errors
    if bad.num_errors > len(listed):
        note = f"{bad.num_errors} lines are wrong; the first {len(listed)} are listed."
        listed = [*listed[:-1], BatchError(code="too_many_errors", message=note)]
    errors = BatchErrors(data=listed).model_dump_json()
    with context.database.begin(committing=Point.PREPARE_FAILING, committed=Point.PREPARE_FAILED) as connection:
        moved = batches.move(batch_id, BatchState.FAILED, errors_json=errors).fetch_optional(connection)
        if moved is not None:
            record_webhook_event(connection, moved.tenant_id, "batch.failed", batch_id)
    log.info("batch_failed", batch=batch_id, errors=bad.num_errors)
    if moved is not None:
        batch_ended(batch, BatchState.FAILED, {})
        context.counters.add(CounterName.BATCHES_FAILED)
    context.tickets.deliver(batch_id)


def _send_tickets(context: ClerkContext, batch_id: str, shards: list[ShardRow]) -> None:
    """Wake the workers of each model with a few tickets; a worker then takes shards until none is left."""
    for model, number in Counter(shard.model for shard in shards).items():
        for _ in range(min(number, 2 * context.settings.batch_lanes)):
            context.tickets.run_shards(model)
    if not shards:
        with context.database.begin() as connection:
            ready = batches.begin_finalizing(batch_id).fetch_optional(connection)
        if ready is not None:
            context.tickets.finalize(batch_id)
