"""The answers of a batch as a table: joined to the table that it was mapped from, or as a table of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from core.errors import Problem
from mapping.answers import Answers
from mapping.columns import Column, ColumnType, Kind
from mapping.formats.frames import FrameTable
from mapping.formats.table import JoinedRow, Row, Table, TableFormat
from mapping.formats.writing import write_table
from mapping.jobs.input import open_input, refusing
from mapping.jobs.messages import JoinTable, ListResults, ResultRow
from mapping.join import PlannedRow, join_rows, plan_rows
from mapping.row_mapper import RowMapper
from mapping.spec import parse_spec

COMPLETED: Final = "completed"
_INTEGER: Final = ColumnType(Kind.INTEGER)
_IDS: Final = (Column("custom_id"), Column("status"))
_CELLS: Final = (
    Column("prompt"),
    Column("answer"),
    Column("prompt_tokens", _INTEGER),
    Column("completion_tokens", _INTEGER),
    Column("error_code"),
    Column("error"),
)
_read_row: Final = msgspec.json.Decoder(ResultRow).decode
_encode: Final = msgspec.json.Encoder().encode


def join_table(job: JoinTable, source: IO[bytes], target: IO[bytes]) -> None:
    """Write the table with the cells of the answers that `source` has. Raises Refused."""
    reason = "not answered: the batch ended before this row" if job.is_over else "not answered yet"
    with Answers(unanswered=reason) as answers, refusing(job.table.param):
        table = open_input(job.table)
        mapper = RowMapper(parse_spec(job.mapping), table)
        answers.add(source)
        planned: Iterable[PlannedRow] = plan_rows(table, mapper)
        shown: Table = table
        if job.outcome is not None:
            planned = (row for row in planned if row.request or row.problem)
            if isinstance(table, FrameTable):  # its rows would be joined frame by frame, without a gap
                shown = _JoinedTable(path=table.path, label=table.label, format=table.format, columns=table.columns)
        joined = _chosen(join_rows(planned, mapper, answers), job.outcome)
        write_table(joined, shown, mapper.added, target, TableFormat(job.format))


def list_results(job: ListResults, source: IO[bytes], target: IO[bytes]) -> None:
    """Write a table of the result rows that `source` has. CSV is written as that of a sheet, so that Excel reads it as UTF-8."""
    table = _JoinedTable(path=Path(), label="results", format=TableFormat.XLSX, columns=_IDS)
    rows = (_joined(number, _read_row(line)) for number, line in enumerate(source, 1))
    with refusing("format"):
        write_table(_chosen(rows, job.outcome), table, _CELLS, target, TableFormat(job.format))


@dataclass(kw_only=True)
class _JoinedTable(Table):
    """The columns of rows that are joined already."""

    columns: tuple[Column, ...]

    def rows(self) -> Iterator[Row]:
        """No rows, since they come with their cells."""
        return iter(())


def _joined(number: int, result: ResultRow) -> JoinedRow:
    problem = Problem.from_json(result.problem) if result.problem else None
    cells = (
        prompt_text(msgspec.json.decode(result.body)),
        answer_text(msgspec.json.decode(result.answer)) if result.answer else None,
        result.prompt_tokens,
        result.completion_tokens,
        problem.code if problem else None,
        problem.message if problem else None,
    )
    return JoinedRow(Row(number, {"custom_id": result.custom_id, "status": result.status}), cells)


def _chosen(rows: Iterable[JoinedRow], outcome: str | None) -> Iterator[JoinedRow]:
    """The rows with an answer or with an error; the last cell is the error."""
    return (row for row in rows if outcome is None or (row.cells[-1] is None) == (outcome == COMPLETED))


def prompt_text(body: Any) -> str:  # Any: JSON of a request
    """Return the last text of the user in a request of any endpoint."""
    if not isinstance(body, dict):
        return ""
    said = body.get("messages", body.get("input", body.get("prompt")))
    if isinstance(said, list) and said and isinstance(said[-1], dict):
        said = next((turn.get("content") for turn in reversed(said) if turn.get("role") == "user"), "")
    return _text(said)


def answer_text(answer: Any) -> str:  # Any: JSON of a response
    """Return the text of an answer of any endpoint; tool calls and vectors as JSON."""
    if choices := answer.get("choices"):
        message = choices[0].get("message")
        if message is None:
            return _text(choices[0].get("text"))
        return _text(message.get("content") or message.get("refusal") or message.get("tool_calls"))
    if "data" in answer:
        vectors = [each.get("embedding") for each in answer["data"]]
        return _text(vectors[0] if len(vectors) == 1 else vectors)
    items = answer.get("output", ())
    texts = [_text(item.get("content")) for item in items if item.get("type") == "message"]
    return "".join(texts) or _text([item for item in items if item.get("type") == "function_call"] or None)


def _text(value: Any) -> str:  # Any: text, parts of a text, or other JSON
    if value is None or isinstance(value, str):
        return value or ""
    parts = value if isinstance(value, list) else [value]
    if parts and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    return _encode(value).decode()
