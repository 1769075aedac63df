"""Open a table by its extension and content."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mapping.errors import MappingError
from mapping.formats.csv_table import CsvTable
from mapping.formats.jsonl_table import JsonlTable
from mapping.formats.table import Table, TableFormat

_EXTENSIONS: Final = {
    ".csv": TableFormat.CSV,
    ".txt": TableFormat.CSV,
    ".tsv": TableFormat.TSV,
    ".tab": TableFormat.TSV,
    ".jsonl": TableFormat.JSONL,
    ".ndjson": TableFormat.JSONL,
    ".parquet": TableFormat.PARQUET,
    ".pq": TableFormat.PARQUET,
    ".xlsx": TableFormat.XLSX,
}


def format_of(path: Path) -> TableFormat | None:
    """Return the format that the extension of a file names."""
    return _EXTENSIONS.get(path.suffix.lower())


def open_table(
    path: Path,
    *,
    name: str | None = None,
    format: TableFormat | None = None,  # noqa: A002 - the word of every reader of tables
    encoding: str | None = None,
    delimiter: str | None = None,
    sheet: str | None = None,
) -> Table:
    """Open a table. Of a stored upload, `name` is the file name that the client gave. Raises MappingError."""
    del sheet
    kind = format or format_of(Path(name) if name else path) or TableFormat.CSV
    if kind in (TableFormat.CSV, TableFormat.TSV):
        return CsvTable(path=path, format=kind, encoding=encoding, delimiter=delimiter)
    if kind is TableFormat.JSONL:
        return JsonlTable(path=path, format=kind, encoding=encoding)
    raise MappingError(f"{kind} is not supported yet")
