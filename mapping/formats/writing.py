"""Write a table with its added columns, in any format but Excel's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from mapping.columns import Column
from mapping.errors import MappingError
from mapping.formats.csv_writer import CsvWriter
from mapping.formats.frames import polars_module, write_parquet
from mapping.formats.jsonl_writer import write_jsonl
from mapping.formats.table import JoinedRow, Table, TableFormat, WriteCounts


def write_table(
    joined: Iterable[JoinedRow],
    table: Table,
    added: tuple[Column, ...],
    file: IO[bytes],
    format: TableFormat,  # noqa: A002 - the word of every writer of tables
    *,
    escape_formulas: bool = True,
) -> WriteCounts:
    """Write rows with their added cells to an open file. Raises MappingError.

    `escape_formulas` puts a `'` before free text in CSV that Excel would run as a formula.
    """
    if format in (TableFormat.CSV, TableFormat.TSV):
        return CsvWriter(table, added, format, escape_formulas=escape_formulas).write(joined, file)
    if format is TableFormat.JSONL:
        return write_jsonl(joined, table, added, file)
    if format is TableFormat.PARQUET:
        return write_parquet(joined, table, added, file)
    raise _not_written(format)


def check_writable(format: TableFormat) -> None:  # noqa: A002 - as above
    """Raise MappingError for a format that cannot be written, or not without an extra."""
    if format is TableFormat.XLSX:
        raise _not_written(format)
    if format is TableFormat.PARQUET:
        polars_module()


def _not_written(format: TableFormat) -> MappingError:  # noqa: A002 - as above
    return MappingError(f"{format} cannot be written: use csv, tsv, jsonl or parquet", param="format")
