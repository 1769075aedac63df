"""CSV and TSV out: records of a CSV table keep their bytes and get fields of the same dialect."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import IO, Any, Final

from mapping.cells import cell_text
from mapping.columns import Column, Kind
from mapping.formats.csv_table import CsvTable
from mapping.formats.table import JoinedRow, Row, Table, TableFormat, WriteCounts

_FORMULA: Final = re.compile(
    r"[=+\-@\t\r](?!$|[\d.,]+%?$)", re.DOTALL
)  # Excel runs it; numbers and single signs are data
_EXCEL_BOM: Final = b"\xef\xbb\xbf"  # by which Excel finds that a file is UTF-8


class CsvWriter:
    """Writes a table with its added columns."""

    def __init__(
        self,
        table: Table,
        added: tuple[Column, ...],
        format: TableFormat,  # noqa: A002
        *,
        escape_formulas: bool,
    ) -> None:
        self._table = table
        self._source = source = table if isinstance(table, CsvTable) and table.format is format else None
        self._delimiter = (source and source.delimiter) or ("\t" if format is TableFormat.TSV else ",")
        self._encoding = (source and source.encoding) or "utf-8"
        self._quotes_all = source is not None and source.is_quoted
        self._special = re.compile(rf'["\r\n{re.escape(self._delimiter)}]|^\s|\s$')
        self._ends = [end.encode(self._encoding) for end in ("\r\n", "\n", "\r")]
        self._line_end = "\r\n" if table.format is TableFormat.XLSX else "\n"
        self._names = [column.name for column in added]
        self._is_free = [escape_formulas and c.type.kind is Kind.STRING and not c.type.choices for c in added]
        self._counts = WriteCounts()

    def write(self, joined: Iterable[JoinedRow], file: IO[bytes]) -> WriteCounts:
        """Write the header and all rows."""
        source, counts = self._source, self._counts
        if source:
            file.write(source.bom + source.head + self._appended(source.header, self._names))
        else:
            file.write(_EXCEL_BOM if self._table.format is TableFormat.XLSX else b"")
            file.write(self._record([*self._table.names, *self._names]))
        for row, cells in joined:
            counts.rows += 1
            counts.failed += cells[-1] is not None
            safe = [
                "'" + cell if is_free and type(cell) is str and _FORMULA.match(cell) else cell
                for cell, is_free in zip(cells, self._is_free, strict=True)
            ]
            if source:
                file.write(self._appended(row.raw, [*self._missing(row), *safe]))
            else:
                file.write(self._record([*row.values.values(), *safe]))
        file.write(source.tail if source else b"")
        return counts

    def _missing(self, row: Row) -> list[None]:
        """Return an empty cell for each field that a record lacks, so that the added cells stand in their columns."""
        values = row.values
        return [] if values[self._table.names[-1]] is not None else [None for cell in values.values() if cell is None]

    def _appended(self, raw: bytes, cells: Iterable[Any]) -> bytes:
        end = next((end for end in self._ends if raw.endswith(end)), b"")
        fields = self._delimiter + self._delimiter.join(map(self._field, cells))
        return raw[: len(raw) - len(end)] + self._encoded(fields) + end

    def _record(self, cells: Iterable[Any]) -> bytes:
        return self._encoded(self._delimiter.join(map(self._field, cells)) + self._line_end)

    def _field(self, cell: Any) -> str:  # Any: a cell
        text = cell_text(cell)
        if self._special.search(text) or (self._quotes_all and isinstance(cell, str)):
            return '"' + text.replace('"', '""') + '"'
        return text

    def _encoded(self, fields: str) -> bytes:
        """Encode fields; a character that the encoding lacks becomes an escape such as `\\u4f60`."""
        try:
            return fields.encode(self._encoding)
        except UnicodeEncodeError:
            self._counts.escaped += 1
            return fields.encode(self._encoding, "backslashreplace")
