"""Open a table by its content and the extension of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mapping.errors import MappingError
from mapping.formats.csv_table import CsvTable
from mapping.formats.frames import ExcelTable, ParquetTable
from mapping.formats.jsonl_table import JsonlTable
from mapping.formats.table import Table, TableFormat

_EXTENSIONS: Final = {
    ".csv": TableFormat.CSV,
    ".txt": TableFormat.CSV,
    ".tsv": TableFormat.TSV,
    ".tab": TableFormat.TSV,
    ".jsonl": TableFormat.JSONL,
    ".ndjson": TableFormat.JSONL,
    ".json": TableFormat.JSONL,
    ".parquet": TableFormat.PARQUET,
    ".pq": TableFormat.PARQUET,
    ".xlsx": TableFormat.XLSX,
    ".xlsm": TableFormat.XLSX,
    ".xls": TableFormat.XLSX,
}
_STARTS: Final = (
    (b"PAR1", TableFormat.PARQUET),
    (b"PK\x03\x04", TableFormat.XLSX),
    (b"\xd0\xcf\x11\xe0", TableFormat.XLSX),  # of Excel before 2007
)
_REFUSED: Final = (
    (b"\x1f\x8b", "is compressed: decompress it first, with gunzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed: decompress it first, with unzstd"),
    (b"\x89PNG", "is an image, no table"),
    (b"\xff\xd8\xff", "is an image, no table"),
    (b"%PDF", "is a PDF file, no table"),
    (b"<", "is HTML or XML, no table: save it as CSV or XLSX"),
)


def format_of(name: str | Path) -> TableFormat | None:
    """Return the format that the extension of a file name stands for."""
    return _EXTENSIONS.get(Path(name).suffix.lower())


def open_table(
    path: Path,
    *,
    name: str | None = None,
    format: TableFormat | None = None,  # noqa: A002 - the word of every reader of tables
    encoding: str | None = None,
    delimiter: str | None = None,
    sheet: str | None = None,
) -> Table:
    """Open a table. `name` is the file name that a client gave to an upload. Raises MappingError."""
    label = name or path.name
    with path.open("rb") as file:
        start = file.read(64)
    if not start.strip(b"\xef\xbb\xbf \t\r\n"):
        raise MappingError(f"{label} is empty")
    kind = format or _found(start, label)
    match kind:
        case TableFormat.PARQUET:
            return ParquetTable(path=path, label=label, format=kind)
        case TableFormat.XLSX:
            return ExcelTable(path=path, label=label, format=kind, sheet=sheet)
        case TableFormat.JSONL:
            return JsonlTable(path=path, label=label, format=kind, encoding=encoding)
        case _:
            return CsvTable(path=path, label=label, format=kind, encoding=encoding, delimiter=delimiter)


def _found(start: bytes, label: str) -> TableFormat:
    """Return the format of a file: binary ones by their first bytes, text by the extension."""
    for mark, problem in _REFUSED:
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(mark):
            raise MappingError(f"{label} {problem}")
    by_content = next((kind for mark, kind in _STARTS if start.startswith(mark)), None)
    by_name = format_of(label)
    if by_content is None and by_name in (TableFormat.PARQUET, TableFormat.XLSX):
        raise MappingError(f"{label} is no {by_name} file: its name ends so, but its content is another")
    if by_content is None and by_name is None and start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return TableFormat.JSONL
    return by_content or by_name or TableFormat.CSV
