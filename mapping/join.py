"""The way of a table: its rows are planned, their requests written, and the answers joined to the rows, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from mapping.answers import Answers
from mapping.disk_map import DiskMap
from mapping.errors import RowError
from mapping.formats.table import JoinedRow, Row, Table
from mapping.previous import Previous
from mapping.row_mapper import Request, RowMapper


class PlannedRow(NamedTuple):
    """A row with its request, or the reason why it has none: it is left out, has a problem, or keeps the cells of before."""

    row: Row
    request: Request | None = None
    problem: str | None = None
    kept: tuple[Any, ...] | None = None  # Any: cells


@dataclass(slots=True, kw_only=True)
class PlanCounts:
    """Numbers of rows: all, asked, left out by `where`, `limit` or empty cells, kept, failed; and of distinct requests."""

    rows: int = 0
    asked: int = 0
    left_out: int = 0
    kept: int = 0
    failed: int = 0
    requests: int = 0


def plan_rows(table: Table, mapper: RowMapper, previous: Previous | None = None) -> Iterator[PlannedRow]:
    """Plan each row of a table. After `limit` rows that are asked, the rest is left out."""
    left = mapper.spec.limit if mapper.spec.limit is not None else -1
    for row in table.rows():
        kept = previous.cells(row) if previous else None
        if kept is not None:
            yield PlannedRow(row, kept=kept)
            continue
        if left == 0:
            yield PlannedRow(row)
            continue
        try:
            request = mapper.request(row)
        except RowError as error:
            yield PlannedRow(row, problem=str(error))
            continue
        if request is not None:
            left -= 1
        yield PlannedRow(row, request)


def new_requests(
    planned: Iterable[PlannedRow], counts: PlanCounts, asked: DiskMap, answered: Answers | None = None
) -> Iterator[Request]:
    """Yield each request that is neither asked nor answered yet, and note it as asked; the counts grow with the rows."""
    for each in planned:
        counts.rows += 1
        if each.kept is not None:
            counts.kept += 1
        elif each.problem is not None:
            counts.failed += 1
        elif each.request is None:
            counts.left_out += 1
        else:
            counts.asked += 1
            request = each.request
            if asked.add(request.custom_id.encode()) and (answered is None or request.custom_id not in answered):
                counts.requests += 1
                yield request


def write_requests(planned: Iterable[PlannedRow], file: IO[bytes], answered: Answers | None = None) -> PlanCounts:
    """Write the distinct requests as lines of a batch file, without those that are answered already."""
    counts = PlanCounts()
    with closing(DiskMap()) as asked:
        file.writelines(request.line for request in new_requests(planned, counts, asked, answered))
    return counts


def join_rows(planned: Iterable[PlannedRow], mapper: RowMapper, answers: Answers) -> Iterator[JoinedRow]:
    """Join the answers to the rows, in their order. A row that was not asked has empty cells."""
    nothing = (None,) * len(mapper.answer_columns)
    for each in planned:
        if each.kept is not None:
            yield JoinedRow(each.row, each.kept)
        elif each.request is None:
            yield JoinedRow(each.row, (*nothing, each.problem))
        else:
            try:
                yield JoinedRow(each.row, mapper.cells(answers.get(each.request.custom_id)))
            except RowError as error:
                yield JoinedRow(each.row, (*nothing, str(error)))
