"""The answers of a batch as a table, written by a child process while they are read from the database."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

import anyio.to_thread
import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.files.disk_space import full_disk_is_a_problem
from api.tables.table_processes import TableProcesses, job_limits
from core.errors import ApiError, Problem, not_found
from core.files.file_store import FileStore
from core.schemas.batch import answered_line, failed_line
from core.states import FINAL_BATCH_STATES
from db import batch_results, batches, files
from db.batch_results import TableLine
from db.batches import BatchRow
from mapping.jobs.messages import JoinTable, ListResults, ResultRow, TableFile, TableJob

_PAGE_LINES: Final = 500
_CPU_SECONDS: Final = 120
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersTable:
    """The table of a batch; of one that was retried, with the best results of its family, whichever of them is asked for."""

    batch: BatchRow
    root_id: str
    family_ids: list[str]
    mapping_json: str | None
    table_name: str | None

    @property
    def stem(self) -> str:
        """The name of a file for it, without an extension."""
        return f"{self.batch.id}_table" if self.table_name is None else f"{PurePath(self.table_name).stem}_answers"


async def find_answers(connection: AsyncConnection, batch: BatchRow) -> AnswersTable:
    """Look up what the table of a batch is made of. Raises the 404 of a mapped batch whose table was deleted."""
    members = list((await connection.execute(batch_results.family(batch.id))).scalars())
    mapping_json = table_name = None
    if batch.table_file_id is not None:
        mapping_json = (await connection.execute(batches.mapping_of(batch.id))).scalar_one()
        table_name = (await connection.execute(files.table_name(batch.table_file_id))).scalar_one_or_none()
        if table_name is None:
            raise _no_table(batch)
    return AnswersTable(
        batch=batch, root_id=members[0], family_ids=members, mapping_json=mapping_json, table_name=table_name
    )


async def write_answers(
    table: AnswersTable,
    format_name: str,
    outcome: str | None,
    *,
    database: AsyncEngine,
    file_store: FileStore,
    processes: TableProcesses,
    max_bytes: int,
) -> AsyncGenerator[bytes]:
    """Yield the bytes of the table. Raises the 4xx of one that cannot be made, usually before the first of them."""
    batch, limits = table.batch, job_limits(_CPU_SECONDS, max_bytes)
    with ExitStack() as opened:
        if batch.table_file_id is None or table.mapping_json is None or table.table_name is None:
            descriptors: list[int] = []
            job: TableJob = ListResults(parent=os.getpid(), limits=limits, format=format_name, outcome=outcome)
            lines = _result_rows(database, table)
        else:
            try:
                with full_disk_is_a_problem():
                    stream = opened.enter_context(await anyio.to_thread.run_sync(file_store.open, batch.table_file_id))
            except FileNotFoundError:
                raise _no_table(batch) from None
            descriptors = [stream.fileno()]
            job = JoinTable(
                parent=os.getpid(),
                limits=limits,
                table=TableFile(descriptor=stream.fileno(), name=table.table_name, param="table_file_id"),
                mapping=msgspec.json.decode(table.mapping_json),
                format=format_name,
                outcome=outcome,
                is_over=batch.status in FINAL_BATCH_STATES,
            )
            lines = _result_lines(database, table)
        async for chunk in processes.stream(batch.tenant_id, job, descriptors, lines):
            yield chunk


async def _pages(database: AsyncEngine, table: AnswersTable, *, with_body: bool) -> AsyncIterator[list[TableLine]]:
    """All lines of the batch in order; no connection is held while a page is used."""
    after = 0
    while True:
        statement = batch_results.table_lines(table.root_id, table.family_ids, after, _PAGE_LINES, with_body=with_body)
        async with database.connect() as connection:
            rows = await statement.async_fetch_all(connection)
        if not rows:
            return
        after = rows[-1].line
        yield rows


async def _result_lines(database: AsyncEngine, table: AnswersTable) -> AsyncIterator[bytes]:
    """The lines that have ended, as in result files."""
    async for rows in _pages(database, table, with_body=False):
        yield b"".join(map(_result_line, rows))


def _result_line(row: TableLine) -> bytes:
    if row.answer is not None:
        return answered_line(row.id, row.custom_id, row.answer)
    return failed_line(row.id, row.custom_id, Problem.from_json(row.problem)) if row.problem else b""


async def _result_rows(database: AsyncEngine, table: AnswersTable) -> AsyncIterator[bytes]:
    """All lines, with their requests."""
    async for rows in _pages(database, table, with_body=True):
        yield b"".join(_encode(_to_result(row)) + b"\n" for row in rows)


def _to_result(row: TableLine) -> ResultRow:
    return ResultRow(
        custom_id=row.custom_id,
        status=row.state,
        body=row.body,
        answer=row.answer,
        problem=row.problem,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
    )


def _no_table(batch: BatchRow) -> ApiError:
    message = (
        f"The table of this batch, '{batch.table_file_id}', was deleted, so its rows are gone. The answers are still at "
        f"/v1/batches/{batch.id}/output?merged=true."
    )
    return not_found(message, code="table_deleted", param="table_file_id")
