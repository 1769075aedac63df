"""CSV and TSV out: records of a CSV table keep their bytes and get fields of the same dialect."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import IO, Any, Final

from mapping.cells import cell_text
from mapping.columns import Column, Kind
from mapping.formats.csv_table import CsvTable, has_open_quote
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
        self._special = re.compile(rf'["\r\n{re.escape(self._delimiter)}]').search
        self._ends = [end.encode(self._encoding) for end in ("\r\n", "\n", "\r")]
        self._line_end = "\r\n" if table.format is TableFormat.XLSX else "\n"
        self._names = [column.name for column in added]
        self._is_free = [escape_formulas and c.type.kind is Kind.STRING and not c.type.choices for c in added]
        self._counts = WriteCounts()

    def write(self, joined: Iterable[JoinedRow], file: IO[bytes]) -> WriteCounts:
        """Write the header and all rows."""
        source, counts = self._source, self._counts
        if source:
            file.write(source.bom + source.head)
            file.write(self._appended(source.header, self._delimiter * source.unnamed + self._joined(self._names)))
        else:
            file.write(_EXCEL_BOM if self._table.format is TableFormat.XLSX else b"")
            file.write(self._encoded(self._joined([*self._table.names, *self._names]) + self._line_end))
        last = self._table.names[-1]
        for row, cells in joined:
            counts.rows += 1
            counts.failed += cells[-1] is not None
            added = self._delimiter.join(map(self._field, cells, self._is_free))
            if not source:
                file.write(self._encoded(self._joined(row.values.values()) + self._delimiter + added + self._line_end))
            elif row.problem or row.values[last] is None:
                file.write(self._appended(row.raw, added, self._repair(row)))
            else:
                file.write(self._appended(row.raw, added))
        file.write(source.tail if source else b"")
        return counts

    def _repair(self, row: Row) -> str:
        """Return the quote and the delimiters that a record lacks, so that what follows stands in its columns."""
        text = row.raw.decode(self._encoding, "replace").lstrip("\r\n")  # without blank lines before it
        num_missing = sum(cell is None for cell in row.values.values())
        return ('"' if row.problem and has_open_quote(text, self._delimiter) else "") + self._delimiter * num_missing

    def _appended(self, raw: bytes, added: str, repair: str = "") -> bytes:
        end = next((end for end in self._ends if raw.endswith(end)), b"")
        return raw[: len(raw) - len(end)] + self._encoded(f"{repair}{self._delimiter}{added}") + end

    def _joined(self, cells: Iterable[Any]) -> str:
        return self._delimiter.join(map(self._field, cells))

    def _field(self, cell: Any, is_free: bool = False) -> str:  # Any: a cell
        if cell is None:
            return ""
        is_text = isinstance(cell, str)
        text = cell if is_text else cell_text(cell)
        if is_free and _FORMULA.match(text):
            text = "'" + text
        return '"' + text.replace('"', '""') + '"' if (is_text and self._quotes_all) or self._special(text) else text

    def _encoded(self, fields: str) -> bytes:
        """Encode fields; a character that the encoding lacks becomes an escape such as `\\u4f60`."""
        try:
            return fields.encode(self._encoding)
        except UnicodeEncodeError:
            self._counts.escaped += 1
            return fields.encode(self._encoding, "backslashreplace")
