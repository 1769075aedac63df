"""Prepare a batch: read its file, plan it and write its jobs and shards, or fail it with a list of its bad lines.

The file is read twice: in order, when each line is checked and only the numbers of the plan are kept, then in the plan's
order, when lines are copied into rows. Everything happens in one transaction, so a clerk that is killed leaves nothing behind
and the next one starts afresh. A line with a wrong envelope fails the file, before the copy begins, since Postgres logs a COPY
that is broken off as an ERROR. A line whose body the endpoint would reject, or that cannot be read, is a failed job.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

import psycopg
import structlog
from sqlalchemy import Connection

from core import ids
from core.api_keys import estimated_tokens
from core.counters import CounterName
from core.errors import Problem
from core.failpoints import Point, failpoint
from core.models.model_files import ModelCatalog
from core.readiness import model_state
from core.schemas.batch import NO_BODY, BatchLine, CheckedLine, read_checked_line
from core.schemas.objects import BatchError, BatchErrors
from core.states import BatchState, JobState
from db import batches, workers
from db.batches import BatchRow
from db.bulk_insert import LineRow, ShardRow, copy_lines, copy_shards
from db.connections import allow_long_transaction
from workers.batches.batch_trace import batch_ended, batch_work
from workers.batches.file_kind import check_kind
from workers.batches.line_checker import LineChecker, RejectedLine
from workers.batches.line_reader import LineParser, LineSpan, RawLine, UnreadableLine, read_lines, read_span
from workers.batches.plan import PlanLine, PlannedShard, plan_shards
from workers.batches.quota import check_quota, read_quota
from workers.context import ClerkContext
from workers.runtime.clerk_metrics import TASK_FAILURES, TASK_SECONDS
from workers.runtime.recorder import timed
from workers.runtime.webhook_outbox import record_webhook_event

log = structlog.get_logger()


class _BadFile(Exception):
    """The file cannot become a batch."""

    def __init__(self, errors: list[BatchError], num_errors: int) -> None:
        super().__init__(f"{num_errors} errors")
        self.errors = errors
        self.num_errors = num_errors


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
                shards = _copy_file(context, connection, batch, stream)
                failpoint(Point.PREPARE_COPIED)
        except _BadFile as bad:
            _fail(context, waiting, bad)
            return
        log.info("batch_prepared", batch=batch_id, shards=len(shards))
        failpoint(Point.PREPARE_COMMITTED)
        _send_tickets(context, batch_id, shards)
        failpoint(Point.PREPARE_TICKETED)


def _copy_file(context: ClerkContext, connection: Connection, batch: BatchRow, stream: BinaryIO) -> list[ShardRow]:
    """Write all rows of a batch; returns its shards, or none when it was cancelled meanwhile."""
    quota = read_quota(connection, batch.tenant_id, batch.key_id)
    catalog = context.look_at_models().only(quota.models)
    first = _FirstPass(context, batch.endpoint, catalog, _stopped(context, connection, catalog))
    first.read(stream)
    tokens = estimated_tokens(first.num_bytes)
    if (excess := check_quota(connection, quota, lines=len(first.lines), tokens=tokens)) is not None:
        raise _BadFile([excess], 1)
    planned = plan_shards(first.lines, context.settings.shard_lines)
    with copy_lines(connection) as copy:
        rows = _Rows(batch, copy)
        for failed in first.failed:
            rows.write_failed(failed, stream)
        shards = [rows.write_shard(n, shard, first.spans, stream) for n, shard in enumerate(planned)]
    copy_shards(connection, shards)
    models = list(first.models)
    start = batches.start(
        batch.id,
        lines=first.num_lines,
        lines_failed=len(first.failed),
        model=models[0] if len(models) == 1 else None,
        queued_tokens=tokens,
    )
    if start.fetch_optional(connection) is None:
        connection.rollback()
        return []
    context.counters.add(CounterName.LINES_REJECTED, number=len(first.failed))
    return shards


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
        raise _BadFile([missing], 1) from None


@dataclass(frozen=True, slots=True)
class _FailedLine:
    """A line that has failed already. Without a `span` its body cannot be read, and is stored as null."""

    number: int
    custom_id: str
    problem: Problem
    model: str = ""
    span: LineSpan | None = None


class _Rows:
    """Writes the rows of one batch."""

    def __init__(self, batch: BatchRow, copy: psycopg.Copy) -> None:
        self._batch = batch
        self._copy = copy
        self._num_placed = 0

    def write_failed(self, line: _FailedLine, stream: BinaryIO) -> None:
        """Write a line that has failed already."""
        body = NO_BODY if line.span is None else read_checked_line(read_span(stream, line.span)).body
        self._write(line.number, CheckedLine(line.custom_id, body), model=line.model, problem=line.problem)

    def write_shard(self, position: int, planned: PlannedShard, spans: list[LineSpan], stream: BinaryIO) -> ShardRow:
        """Write the lines of a shard, in its order; returns the row of the shard itself."""
        shard_id = ids.new_id(ids.SHARD)
        for index in planned.lines:
            span = spans[index]
            line = read_checked_line(read_span(stream, span))
            self._write(span.number, line, model=planned.model, shard_id=shard_id)
        batch = self._batch
        return ShardRow(shard_id, batch.id, batch.tenant_id, planned.model, position, len(planned.lines))

    def _write(
        self, number: int, line: CheckedLine, *, model: str, shard_id: str | None = None, problem: Problem | None = None
    ) -> None:
        self._copy.write_row(
            LineRow(
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
        )
        self._num_placed += shard_id is not None


class _FirstPass:
    """Checks raw lines in order; collects errors, lines that fail alone, and the plan's entry of each line that will run."""

    def __init__(self, context: ClerkContext, endpoint: str, catalog: ModelCatalog, down: frozenset[str]) -> None:
        self._settings = context.settings
        self._parser = LineParser(endpoint, context.settings.line_bytes)
        is_shared = context.settings.share_identical_lines
        self._checker = LineChecker(catalog, share_identical_lines=is_shared, endpoint=endpoint, down=down)
        self._errors: list[BatchError] = []
        self._num_errors = 0
        self.num_lines = 0
        self.num_bytes = 0
        self.models: set[str] = set()
        self.failed: list[_FailedLine] = []
        self.lines: list[PlanLine] = []
        self.spans: list[LineSpan] = []

    def read(self, stream: BinaryIO) -> None:
        """Check the lines of a file. Raises _BadFile."""
        if (error := check_kind(stream)) is not None:
            raise _BadFile([error], 1)
        for raw in read_lines(stream, self._settings.line_bytes):
            self._add_line(raw)
        if self._num_errors:
            raise _BadFile(self._errors, self._num_errors)
        if not self.num_lines:
            raise _BadFile([BatchError(code="empty_file", message="The input file has no lines.")], 1)

    def _add_line(self, raw: RawLine) -> None:
        line = self._parser.parse(raw)
        if isinstance(line, BatchError):
            self._add_error(line)
            return
        if self.num_lines >= self._settings.batch_lines:
            message = f"A batch has at most {self._settings.batch_lines} lines; split the file."
            raise _BadFile([BatchError(code="too_many_tasks", message=message)], 1)
        if self._num_errors:
            return
        self.num_lines += 1
        if isinstance(line, UnreadableLine):
            self.failed.append(_FailedLine(raw.number, line.custom_id, line.problem))
        else:
            self._add_checked(raw, line)

    def _add_error(self, error: BatchError) -> None:
        self._num_errors += 1
        if len(self._errors) < self._settings.error_lines:
            self._errors.append(error)

    def _add_checked(self, raw: RawLine, line: BatchLine) -> None:
        checked = self._checker.check(line, raw.content)
        if self._checker.num_inputs > (most := self._settings.batch_inputs):
            message = f"The lines of a batch have at most {most} inputs to embed; split the file."
            raise _BadFile([BatchError(code="too_many_tasks", message=message)], 1)
        if isinstance(checked, RejectedLine):
            self.models.add(checked.model)
            failed = _FailedLine(raw.number, line.custom_id, checked.problem, checked.model, raw.span)
            self.failed.append(failed)
        else:
            self.models.add(checked.model.name)
            self.lines.append(checked.plan)
            self.num_bytes += len(raw.content)
            self.spans.append(raw.span)


def _fail(context: ClerkContext, batch: BatchRow, bad: _BadFile) -> None:
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
