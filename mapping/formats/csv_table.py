"""CSV and TSV: rows with the bytes of their records, in the file's own dialect."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mapping.columns import Column
from mapping.errors import MappingError
from mapping.formats.encodings import bom_of, check_encoding, detect_encoding, errors_of, read_lines
from mapping.formats.table import Row, Table, TableFormat

DELIMITERS: Final = ",;\t|"
_SAMPLE_LINES: Final = 100
_MAX_FIELD: Final = 64 << 20
_EXCEL_HINT: Final = "sep="

csv.field_size_limit(_MAX_FIELD)  # of the whole process: 128 KiB, the default, is less than a long document


class Record(NamedTuple):
    """A record of the file: its first line, bytes, and fields, or the reason why it has none."""

    line: int
    raw: bytes
    fields: list[str]
    problem: str | None = None


class _Lines:
    """Iterator of text for `csv.reader`, which keeps the bytes of the lines that it gave."""

    def __init__(self, lines: Iterator[tuple[bytes, str]]) -> None:
        self._lines = lines
        self.raw: list[bytes] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw, text = next(self._lines)
        self.raw.append(raw)
        return text


@dataclass(kw_only=True)
class CsvTable(Table):
    """A CSV file. Its first record names the columns."""

    bom: bytes = field(init=False)
    head: bytes = field(init=False, default=b"")
    header: bytes = field(init=False)
    tail: bytes = field(init=False, default=b"")
    line_end: str = field(init=False, default="\n")
    is_quoted: bool = field(init=False)

    def __post_init__(self) -> None:
        with self.path.open("rb") as file:
            self.bom, from_bom = bom_of(file.read(4))
        self.encoding = from_bom or (check_encoding(self.encoding) if self.encoding else detect_encoding(self.path))
        sample = list(itertools.islice(self._lines(), _SAMPLE_LINES))
        if len(sample) == 1 and "\r" in sample[0][1].rstrip("\r\n"):
            self.line_end = "\r"  # of old Macs
            sample = list(itertools.islice(self._lines(), _SAMPLE_LINES))
        if not any(text.strip() for _, text in sample):
            raise MappingError(f"{self.path.name} is empty: the first line must name the columns")
        texts = [text for _, text in sample]
        if texts[0].lower().startswith(_EXCEL_HINT) and len(texts[0].rstrip("\r\n")) == len(_EXCEL_HINT) + 1:
            self.delimiter = self.delimiter or texts[0][len(_EXCEL_HINT)]
            self.head = sample[0][0]
            texts = texts[1:]
        if self.delimiter is None:
            self.delimiter = _guess_delimiter(texts, self.format)
        records = self._records()
        first = next(records, None)
        if first is None or first.problem:
            raise MappingError(f"{self.path.name}: the first line must name the columns")
        self.header = first.raw
        self._first_line = first.line
        names = _unique([name.strip() for name in first.fields])
        rest = list(itertools.islice(records, 20))
        if rest and all(len(record.fields) == len(names) + 1 for record in rest):
            names = _unique(["row", *names])  # R's write.table names no column of row names
        self.columns = tuple(Column(name) for name in names)
        self.is_quoted = self.header.strip().startswith(b'"')

    def rows(self) -> Iterator[Row]:
        """Read the rows. A row with missing fields has None in their place, one with surplus fields has a problem."""
        names = self.names
        width = len(names)
        records = self._records()
        next(records)
        blank = b""
        number = 0
        for record in records:
            fields, problem = record.fields, record.problem
            if not fields and not problem:
                blank += record.raw
                continue
            number += 1
            if len(fields) > width and not problem:
                problem = f"line {record.line} has {len(fields)} fields, {width} are named in the header"
            values: dict[str, Any] = dict(zip(names, fields, strict=False))
            if len(fields) < width:
                values.update(dict.fromkeys(names[len(fields) :]))
            yield Row(number, values, record.line, blank + record.raw if blank else record.raw, problem)
            blank = b""
        self.tail = blank

    def _lines(self) -> Iterator[tuple[bytes, str]]:
        return read_lines(self.path, self.encoding or "utf-8", self.line_end)

    def _records(self) -> Iterator[Record]:
        """Read all records, the header too, after Excel's hint."""
        lines = _Lines(self._lines())
        if self.head:
            next(lines)
            lines.raw.clear()
        reader = csv.reader(lines, delimiter=self.delimiter or ",")
        line = 2 if self.head else 1
        while True:
            problem = None
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fields, problem = [], f"line {line} is no CSV: {error}"
            raw = lines.raw
            yield Record(line, raw[0] if len(raw) == 1 else b"".join(raw), fields, problem)
            line += len(raw)
            raw.clear()

    def encode(self, text: str) -> bytes:
        """Encode added cells; a character that the encoding lacks is written as an escape such as `\\u4f60`."""
        encoding = self.encoding or "utf-8"
        try:
            return text.encode(encoding)
        except UnicodeEncodeError:
            return text.encode(encoding, errors_of(encoding) if encoding.startswith("utf") else "backslashreplace")


def _guess_delimiter(lines: list[str], kind: TableFormat) -> str:
    """Return the delimiter by which most records have as many fields as the header."""

    def score(delimiter: str) -> tuple[float, int]:
        try:
            widths = [len(fields) for fields in csv.reader(lines, delimiter=delimiter) if fields]
        except csv.Error:
            return (0, 0)
        if widths[0] < 2:
            return (0, 0)
        return (sum(width in (widths[0], widths[0] + 1) for width in widths) / len(widths), widths[0])

    order = "\t,;|" if kind is TableFormat.TSV else DELIMITERS
    best = max(order, key=score)
    return best if score(best) > (0, 0) else order[0]


def _unique(names: list[str]) -> list[str]:
    """Name columns without a name by their position, and number repeated names."""
    unique: list[str] = []
    for index, name in enumerate(names, 1):
        wanted = name or f"column_{index}"
        name, count = wanted, 1
        while name in unique:
            count += 1
            name = f"{wanted}_{count}"
        unique.append(name)
    return unique
