"""Table jobs: the first line on the standard input of `python -m mapping`, and what it prints.

The parent passes open files by descriptor, so the child needs to open no path. A child that refuses its input ends with `REFUSED`
and prints a `Refusal` on standard error.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

REFUSED: Final = 3
FAILED: Final = 4  # the last line on standard error names the cause, without text of the client
TOO_LARGE: Final = 5  # a file would exceed `output_bytes`
DISK_FULL: Final = 6


class JobLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that a child sets for itself; `output_bytes` is that of each file it writes."""

    cpu_seconds: int
    memory_bytes: int
    output_bytes: int


class TableFile(msgspec.Struct, frozen=True, kw_only=True):
    """A table: its descriptor in the child, its name, which tells the format, and the field of the request that names it."""

    descriptor: int
    name: str
    param: str


class _Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A job of the process `parent`, with which the child ends."""

    parent: int
    limits: JobLimits


class PrepareTable(_Job, frozen=True, kw_only=True):
    """Map a table and print a `MapSummary` with `sample` rows; write the lines of a batch's input file to `output`, if given.

    Without a mapping, the table is only read.
    """

    table: TableFile
    mapping: dict[str, Any] | None  # Any: JSON of a MapSpec
    max_requests: int
    sample: int = 0
    output: int | None = None


class JoinTable(_Job, frozen=True, kw_only=True):
    """Read the lines of result files from standard input, and print the table with the cells of its answers.

    `outcome` chooses rows with an answer or with an error, of those that were asked. `is_over`: no more answers will come.
    """

    table: TableFile
    mapping: dict[str, Any]  # Any: JSON of a MapSpec
    format: str
    outcome: str | None
    is_over: bool


class ListResults(_Job, frozen=True, kw_only=True):
    """Read a `ResultRow` from each line of standard input, and print a table of them."""

    format: str
    outcome: str | None


TableJob = PrepareTable | JoinTable | ListResults


class ResultRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of a batch that was not mapped. `body` and `answer` are JSON text, and so is `problem`, a `core.errors.Problem`."""

    custom_id: str
    status: str
    body: str
    answer: str | None = None
    problem: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class SampleRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row (1-based), its cells, and the request that it becomes."""

    row: int
    values: dict[str, Any]  # Any: cells
    custom_id: str | None = None
    body: dict[str, Any] | None = None  # Any: JSON of a request


class RowProblem(msgspec.Struct, frozen=True, kw_only=True):
    """A row (1-based) that becomes no request, and why."""

    row: int
    message: str


class AddedColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column that the answers add, and its type in the shorthand of schemas."""

    name: str
    type: str


class MapSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a table and of the requests of its rows; `delimiter` and `encoding` are those of a text.

    `rows_asked` are those that `where` and `limit` choose; equal ones share a request. `prompt_bytes` is the size of the messages
    or inputs of all requests, and `first_body` the first request, if there is any.
    """

    format: str
    encoding: str | None
    delimiter: str | None
    columns: list[str]
    rows: int
    sample: list[SampleRow]
    endpoint: str | None = None
    added_columns: list[AddedColumn] = []
    rows_asked: int = 0
    rows_failed: int = 0
    problems: list[RowProblem] = []
    requests: int = 0
    prompt_bytes: int = 0
    first_body: dict[str, Any] | None = None  # Any: JSON of a request


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a table or mapping is refused, and the field of the request that has to change."""

    message: str
    code: str
    param: str
