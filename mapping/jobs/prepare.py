"""Map a table to the lines of a batch's input file, and sum up what they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, Any, Final

import msgspec

from mapping.disk_map import DiskMap
from mapping.errors import MappingError
from mapping.formats.table import Table
from mapping.jobs.input import open_input, refused, refusing
from mapping.jobs.messages import AddedColumn, MapSummary, PrepareTable, RowProblem, SampleRow
from mapping.join import PlanCounts, PlannedRow, new_requests, plan_rows
from mapping.row_mapper import Request, RowMapper
from mapping.spec import parse_spec

_MAX_PROBLEMS: Final = 5
_encode: Final = msgspec.json.Encoder().encode


def prepare(job: PrepareTable) -> MapSummary:
    """Write the requests, if a file for them is given. Raises Refused."""
    with refusing(job.table.param):
        table = open_input(job.table)
        if job.mapping is None:
            return _only_read(table, job)
        mapper = RowMapper(parse_spec(job.mapping), table)
        counts, notes = PlanCounts(), _Notes(job.sample)
        with closing(DiskMap()) as asked, _output(job) as file:
            for request in new_requests(notes.of(plan_rows(table, mapper)), counts, asked):
                if counts.requests > job.max_requests:
                    raise _too_many(job.max_requests)
                notes.add(request)
                file.write(request.line)
    _check_rows(counts, notes, job)
    return _summary(
        table,
        counts.rows,
        notes.sample,
        endpoint=mapper.endpoint,
        added_columns=[AddedColumn(name=each.name, type=str(each.type)) for each in mapper.added],
        rows_asked=counts.asked,
        rows_failed=counts.failed,
        problems=notes.problems,
        requests=counts.requests,
        prompt_bytes=notes.body_bytes - counts.requests * _frame_bytes(notes.first),
        first_body=notes.first,
    )


def _only_read(table: Table, job: PrepareTable) -> MapSummary:
    sample, number = [], 0
    for number, row in enumerate(table.rows(), 1):
        if number <= job.sample:
            sample.append(SampleRow(row=row.number, values=row.values))
    return _summary(table, number, sample)


def _summary(
    table: Table, num_rows: int, sample: list[SampleRow], **requests: Any
) -> MapSummary:  # Any: fields of requests
    return MapSummary(
        format=table.format,
        encoding=table.encoding,
        delimiter=table.delimiter,
        columns=list(table.names),
        rows=num_rows,
        sample=sample,
        **requests,
    )


@dataclass(slots=True)
class _Notes:
    """The first rows with requests, and the first ones that cannot be asked; the first request, and the size of all."""

    most: int
    sample: list[SampleRow] = field(default_factory=list)
    problems: list[RowProblem] = field(default_factory=list)
    first: dict[str, Any] | None = None  # Any: JSON of a request
    body_bytes: int = 0

    def of(self, planned: Iterable[PlannedRow]) -> Iterator[PlannedRow]:
        """Yield the rows, and note some."""
        for each in planned:
            if each.request is not None and len(self.sample) < self.most:
                body = msgspec.json.decode(each.request.body)
                custom_id, values = each.request.custom_id, each.row.values
                self.sample.append(SampleRow(row=each.row.number, values=values, custom_id=custom_id, body=body))
            elif each.problem is not None and len(self.problems) < _MAX_PROBLEMS:
                self.problems.append(RowProblem(row=each.row.number, message=each.problem))
            yield each

    def add(self, request: Request) -> None:
        """Note a request."""
        if self.first is None:
            self.first = msgspec.json.decode(request.body)
        self.body_bytes += len(request.body)


def _output(job: PrepareTable) -> IO[bytes]:
    return os.fdopen(job.output if job.output is not None else os.open(os.devnull, os.O_WRONLY), "wb")


def _too_many(most: int) -> MappingError:
    message = f"the table becomes more than {most} requests, the most of a batch: use 'limit', or the command `millrace map`, "
    return MappingError(message + "which makes as many batches as it needs", param="limit")


def _check_rows(counts: PlanCounts, notes: _Notes, job: PrepareTable) -> None:
    """Raise Refused for a table without rows, and for a batch that would have no line."""
    if not counts.rows:
        message = "the table has no rows"
    elif counts.asked or job.output is None:
        return
    elif notes.problems:
        first = notes.problems[0]
        message = f"none of {counts.rows} rows can be asked; row {first.row}: {first.message}"
    else:
        message = f"none of {counts.rows} rows is asked: 'where' leaves them out, or the cells of the prompt are empty"
    raise refused(message, "nothing_to_ask", job.table.param)


def _frame_bytes(body: dict[str, Any] | None) -> int:  # Any: JSON of a request
    """The bytes of a request around its prompt, which are the same in all of them."""
    if body is None:
        return 0
    prompt = body.get("input") if "input" in body else body["messages"]
    return len(_encode(body)) - len(_encode(prompt))
