"""Prepare: read a batch's file once, make its lines jobs and its jobs shards, or fail it with every bad line named.

Everything happens in one transaction, so a clerk that dies leaves nothing behind and the next one starts afresh.
A line whose envelope is wrong fails the file; a line whose body the endpoint would refuse is a failed job.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import psycopg
import pydantic_core
import structlog
from sqlalchemy import Connection, Row, select

from core import ids
from core.errors import ApiError, Problem
from core.models import ModelCatalog
from core.states import BatchState, JobState
from core.wire.batch import BatchLine
from core.wire.chat import ChatRequest
from core.wire.objects import BatchError, BatchErrors
from core.wire.validation import parse_body
from db import batches
from db.copy import LineRow, ShardRow, copy_lines, copy_shards
from db.sessions import patient
from db.tables import Batch
from workers.context import ClerkContext
from workers.line_reader import LineParser, RawLine, read_lines

log = structlog.get_logger()

_BATCH_PRIORITY = 1


class _BadFile(Exception):
    """The file cannot become a batch."""

    def __init__(self, errors: list[BatchError], num_errors: int) -> None:
        super().__init__(f"{num_errors} errors")
        self.errors = errors
        self.num_errors = num_errors


@dataclass(slots=True)
class ShardCutter:
    """Cuts lines into shards as they come: consecutive lines of a model, `size` to a shard."""

    batch_id: str
    tenant_id: str
    size: int
    shards: list[ShardRow] = field(default_factory=list)
    _open: dict[str, int] = field(default_factory=dict)

    def shard_for(self, model: str) -> str:
        """The shard that takes the next line of this model."""
        index = self._open.get(model)
        if index is None or self.shards[index].lines >= self.size:
            index = self._open[model] = len(self.shards)
            shard_id = ids.new_id(ids.SHARD)
            self.shards.append(ShardRow(shard_id, self.batch_id, self.tenant_id, model, index, 0))
        shard = self.shards[index]
        self.shards[index] = shard._replace(lines=shard.lines + 1)
        return shard.id


def prepare(context: ClerkContext, batch_id: str) -> None:
    """Bring a validating batch to in_progress (or failed); does nothing when it is past that or in other hands."""
    try:
        with context.database.begin() as connection:
            connection.execute(patient())
            if not connection.execute(batches.try_lock(batch_id)).scalar_one():
                return
            batch = connection.execute(select(Batch.__table__).where(Batch.id == batch_id)).one_or_none()
            if batch is None or batch.status != BatchState.VALIDATING:
                return
            cutter = _copy_file(context, connection, batch)
    except _BadFile as bad:
        _fail(context, batch_id, bad)
        return
    log.info("batch_prepared", batch=batch_id, shards=len(cutter.shards))
    _send_tickets(context, batch_id, cutter)


def _copy_file(context: ClerkContext, connection: Connection, batch: Row[tuple[object, ...]]) -> ShardCutter:
    try:
        stream = context.files.open(
            batch.input_file_id
        )  # its row may be deleted by now: bytes stay while they are needed
    except FileNotFoundError:
        missing = BatchError(code="invalid_request", message="The input file does not exist any more.", param="file_id")
        raise _BadFile([missing], 1) from None
    cutter = ShardCutter(batch.id, batch.tenant_id, context.settings.shard_lines)
    with stream, copy_lines(connection) as copy:
        reader = _Reader(context, batch, cutter, copy)
        for raw in read_lines(stream, context.settings.line_bytes):
            reader.take(raw)
        reader.check()
    copy_shards(connection, cutter.shards)
    models = list(reader.models)
    moved = connection.execute(
        batches.start(
            batch.id,
            lines=reader.models.total(),
            lines_failed=reader.num_refused,
            model=models[0] if len(models) == 1 else None,
        )
    ).one_or_none()
    if moved is None:
        connection.rollback()
        cutter.shards.clear()
    return cutter


class _Reader:
    """Takes raw lines, copies rows, collects complaints."""

    def __init__(
        self, context: ClerkContext, batch: Row[tuple[object, ...]], cutter: ShardCutter, copy: psycopg.Copy
    ) -> None:
        self._settings = context.settings
        self._catalog: ModelCatalog = context.catalog
        self._batch = batch
        self._cutter = cutter
        self._copy = copy
        self._parser = LineParser(batch.endpoint, context.settings.line_bytes)
        self._now = batch.created_at.isoformat()
        self.errors: list[BatchError] = []
        self.num_errors = 0
        self.num_refused = 0
        self.models: Counter[str] = Counter()

    def take(self, raw: RawLine) -> None:
        """One line of the file."""
        line = self._parser.parse(raw)
        if isinstance(line, BatchError):
            self._complain(line)
        elif self.models.total() >= self._settings.batch_lines:
            message = f"A batch has at most {self._settings.batch_lines} lines; split the file."
            raise _BadFile([BatchError(code="too_many_tasks", message=message)], 1)
        elif not self.num_errors:
            self._copy.write_row(self._row(raw.number, line))

    def check(self) -> None:
        """Raise when the file as a whole is bad; the copied rows go with the transaction."""
        if self.num_errors:
            raise _BadFile(self.errors, self.num_errors)
        if not self.models:
            raise _BadFile([BatchError(code="empty_file", message="The input file has no lines.")], 1)

    def _complain(self, error: BatchError) -> None:
        self.num_errors += 1
        if len(self.errors) < self._settings.error_lines:
            self.errors.append(error)

    def _row(self, number: int, line: BatchLine) -> LineRow:
        problem, model = self._judge(line)
        self.models[model] += 1
        self.num_refused += problem is not None
        return LineRow(
            id=ids.new_id(ids.BATCH_LINE),
            tenant_id=self._batch.tenant_id,
            batch_id=self._batch.id,
            shard_id=None if problem else self._cutter.shard_for(model),
            line=number,
            custom_id=line.custom_id,
            model=model,
            state=JobState.FAILED if problem else JobState.QUEUED,
            priority=_BATCH_PRIORITY,
            body=pydantic_core.to_json(line.body).decode(),
            problem=problem.to_json() if problem else None,
            finished_at="now" if problem else None,
        )

    def _judge(self, line: BatchLine) -> tuple[Problem | None, str]:
        """What the sync endpoint would refuse, and the model's own name."""
        try:
            chat = parse_body(ChatRequest, line.body)
        except ApiError as error:
            asked = line.body.get("model")
            return error.problem, asked[:256] if isinstance(asked, str) else ""
        model = self._catalog.get(chat.model)
        if model is None:
            return unknown_model(chat.model, self._catalog), chat.model
        return None, model.name


def unknown_model(name: str, catalog: ModelCatalog) -> Problem:
    """404 for a model nobody serves."""
    message = f"The model '{name}' does not exist here. Served models: {', '.join(catalog.names()) or 'none'}."
    return Problem(status=404, message=message, code="model_not_found", param="model")


def _fail(context: ClerkContext, batch_id: str, bad: _BadFile) -> None:
    listed = bad.errors
    if bad.num_errors > len(listed):
        note = f"{bad.num_errors} lines are wrong; the first {len(listed)} are listed."
        listed = [*listed[:-1], BatchError(code="too_many_errors", message=note)]
    errors = BatchErrors(data=listed).model_dump_json()
    with context.database.begin() as connection:
        connection.execute(batches.move(batch_id, BatchState.FAILED, errors_json=errors))
    log.info("batch_failed", batch=batch_id, errors=bad.num_errors)


def _send_tickets(context: ClerkContext, batch_id: str, cutter: ShardCutter) -> None:
    """A few tickets per model wake the workers; they go on by themselves from there."""
    for model, number in Counter(shard.model for shard in cutter.shards).items():
        for _ in range(min(number, 2 * context.settings.batch_lanes)):
            context.tickets.run_shards(model)
    if not cutter.shards:
        with context.database.begin() as connection:
            ready = connection.execute(batches.begin_finalizing(batch_id)).one_or_none()
        if ready is not None:
            context.tickets.finalize(batch_id)
