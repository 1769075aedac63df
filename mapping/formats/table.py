"""A table that is read row by row, as often as needed, at flat memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from mapping.columns import Column


class TableFormat(StrEnum):
    """File formats; of `xlsx` only reading is possible."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    PARQUET = "parquet"
    XLSX = "xlsx"


class Row(NamedTuple):
    """A row: its number from 1, its cells by column, and for CSV and JSON Lines its bytes and line.

    `raw` has everything since the end of the row before, with blank lines. A row with a `problem` cannot be read well, and
    is not asked.
    """

    number: int
    values: dict[str, Any]  # Any: cells
    line: int = 0
    raw: bytes = b""
    problem: str | None = None

    head: bytes = b""
    tail: bytes = b""


@dataclass(kw_only=True)
class Table(ABC):
    """An open table. `label` names it in messages; `encoding` and `delimiter` are those of text files."""

    path: Path
    label: str
    format: TableFormat
    columns: tuple[Column, ...] = field(init=False)
    encoding: str | None = None
    delimiter: str | None = None

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Read all rows from the first one."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


class JoinedRow(NamedTuple):
    """A row with the cells of the added columns, of which the last is its error."""

    row: Row
    cells: tuple[Any, ...]  # Any: cells


@dataclass(slots=True, kw_only=True)
class WriteCounts:
    """Numbers of rows, of those with an error, and of those with characters that the encoding of the file lacks."""

    rows: int = 0
    failed: int = 0
    escaped: int = 0


def unique_names(names: list[str]) -> list[str]:
    """Name columns without a name by their position, and number repeated names."""
    unique: dict[str, None] = {}
    for index, name in enumerate(names, 1):
        wanted = name or f"column_{index}"
        count = 1
        while (numbered := wanted if count == 1 else f"{wanted}_{count}") in unique:
            count += 1
        unique[numbered] = None
    return list(unique)
