"""CSV and TSV: rows with the bytes of their records, in the file's own dialect."""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mapping.cells import clean_text
from mapping.columns import Column
from mapping.errors import MappingError
from mapping.formats.encodings import bom_of, encoding_of, read_lines
from mapping.formats.table import Row, Table, TableFormat, unique_names

_DELIMITERS: Final = ",;\t|"
_DELIMITERS_OF_R: Final = ("\t", " ")
_SAMPLE_LINES: Final = 100
_SAMPLE_ROWS: Final = 20
_MAX_FIELD: Final = 16 << 20
_EXCEL_HINT: Final = "sep="

csv.field_size_limit(_MAX_FIELD)  # of the whole process; 128 KiB, the default, is less than a long document


class Record(NamedTuple):
    """A record of the file: its first line, bytes and fields, and the reason why it cannot be used."""

    line: int
    raw: bytes
    fields: list[str]
    problem: str | None = None


@dataclass(kw_only=True)
class CsvTable(Table):
    """A CSV file, whose first record names the columns.

    `head` and `tail` are bytes before the header and after the last row; `unnamed` is the number of last columns that all
    rows have and the header lacks.
    """

    bom: bytes = field(init=False)
    head: bytes = field(init=False, default=b"")
    header: bytes = field(init=False)
    tail: bytes = field(init=False, default=b"")
    unnamed: int = field(init=False, default=0)
    is_quoted: bool = field(init=False)
    _has_hint: bool = field(init=False, default=False)
    _ends_at_cr: bool = field(init=False, default=False)
    _skips_space: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.bom = bom_of(self.path)[0]
        self.encoding = encoding_of(self.path, self.encoding)
        self._read_sample()
        records = self._records()
        first = next(records, None)
        while first is not None and not first.fields and not first.problem:
            self.head += first.raw  # blank lines
            first = next(records, None)
        if first is None or first.problem:
            raise MappingError(f"{self.label} has no header: its first line must name the columns")
        self.header = first.raw
        self._name_columns(first.fields, [r for r in itertools.islice(records, _SAMPLE_ROWS) if r.fields])

    def rows(self) -> Iterator[Row]:
        """Read the rows. A row with missing fields has None in their place, one with surplus fields has a problem."""
        names = self.names
        width = len(names)
        blank = b""
        number = 0
        records = itertools.dropwhile(lambda record: not record.fields, self._records())
        next(records)
        for line, raw, fields, problem in records:
            if not fields:
                blank += raw
                continue
            number += 1
            values: dict[str, Any] = dict(zip(names, fields, strict=False))
            if len(fields) != width:
                values.update(dict.fromkeys(names[len(fields) :]))
                if len(fields) > width and not problem:
                    problem = f"line {line} has {len(fields)} fields, but the header {width}"
            yield Row(number, values, line, blank + raw if blank else raw, problem)
            blank = b""
        self.tail = blank

    def _read_sample(self) -> None:
        """Find out line ends, Excel's hint and delimiter."""
        sample = list(itertools.islice(self._lines(), _SAMPLE_LINES))
        if sample and sample[0][0].endswith(b"\r"):
            self._ends_at_cr = True  # of old Macs
        texts = [text for _, text in sample]
        hint = texts[0].rstrip("\r\n") if texts else ""
        if hint.lower().startswith(_EXCEL_HINT) and len(hint) == len(_EXCEL_HINT) + 1:
            self.delimiter = self.delimiter or hint[-1]
            self.head = sample[0][0]
            self._has_hint = True
            texts = texts[1:]
        if not any(map(str.strip, texts)):
            raise MappingError(f"{self.label} is empty: its first line must name the columns")
        if self.delimiter is None:
            self.delimiter = _guess_delimiter(texts, self.format)
        elif len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise MappingError(f"a delimiter is one character, not {self.delimiter!r}", param="delimiter")
        self.is_quoted = texts[0].startswith('"')
        self._skips_space = any(f'{self.delimiter} "' in text for text in texts) and self.delimiter != " "

    def _name_columns(self, names: list[str], rest: list[Record]) -> None:
        """Name the columns, also those that the header lacks."""
        widths = {len(record.fields) for record in rest}
        if widths == {len(names) + 1} and all(record.fields[-1] == "" for record in rest):
            self.unnamed = 1
            names = [*names, ""]
        elif widths == {len(names) + 1} and (self.is_quoted or self.delimiter in _DELIMITERS_OF_R):
            names = ["row_name", *names]  # R's write.table names no column of row names
        elif widths and min(widths) > len(names) + 1:
            raise MappingError(
                f"{self.label} has {len(names)} fields in line 1, and {min(widths)} in the next ones: "
                "delete lines above the header, or give the delimiter"
            )
        self.columns = tuple(map(Column, unique_names([clean_text(name).strip() for name in names])))

    def _lines(self) -> Iterator[tuple[bytes, str]]:
        return read_lines(self.path, self.encoding or "utf-8", ends_at_cr=self._ends_at_cr)

    def _records(self) -> Iterator[Record]:
        """Read all records after Excel's hint, the header too.

        A record whose quote is not closed properly takes only its first line with it, and not those up to the next quote.
        """
        lines = self._lines()
        again: deque[tuple[bytes, str]] = deque()  # lines that a damaged record had taken
        taken: list[tuple[bytes, str]] = []
        line = 1
        if self._has_hint:
            next(lines)
            line = 2
        dialect: dict[str, Any] = {"delimiter": self.delimiter or ",", "skipinitialspace": self._skips_space}
        reader = csv.reader(_taking(lines, again, taken), strict=True, **dialect)
        while True:
            problem = None
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error:
                again.extendleft(reversed(taken[1:]))
                del taken[1:]
                fields, problem = _sloppy(taken[0][1], dialect, line)
                reader = csv.reader(_taking(lines, again, taken), strict=True, **dialect)
            yield Record(line, taken[0][0] if len(taken) == 1 else b"".join(raw for raw, _ in taken), fields, problem)
            line += len(taken)
            taken.clear()


def _taking(
    lines: Iterator[tuple[bytes, str]], again: deque[tuple[bytes, str]], taken: list[tuple[bytes, str]]
) -> Iterator[str]:
    """Yield the text of each line, those of `again` first, and note what was taken."""
    while line := again.popleft() if again else next(lines, None):
        taken.append(line)
        yield line[1]


def _sloppy(text: str, dialect: dict[str, Any], line: int) -> tuple[list[str], str | None]:
    """Return the fields of a line with wrong quotes, and a problem unless they are closed in the same line."""
    try:
        fields = next(csv.reader([text], **dialect))
    except csv.Error as error:
        return [text], f"line {line} is no CSV: {error}"
    if has_open_quote(text, dialect["delimiter"]):
        return [*fields[:-1], fields[-1].rstrip("\r\n")], f"line {line} has a quote that is not closed"
    return fields, None


def has_open_quote(text: str, delimiter: str) -> bool:
    """Return whether a record ends inside of quotes."""
    return next(csv.reader([text, "\x1e"], delimiter=delimiter))[-1].endswith("\x1e")


def _guess_delimiter(lines: list[str], kind: TableFormat) -> str:
    """Return the delimiter by which most records have as many fields as the header; a space only if nothing else fits.

    With a header of one field it is one that splits all rows alike, or none.
    """

    def score(delimiter: str) -> tuple[bool, float, int]:
        try:
            header, *widths = [len(fields) for fields in csv.reader(lines, delimiter=delimiter) if fields]
        except csv.Error:
            return (False, 0, 0)
        if header == 1:
            return (False, len(set(widths)) == 1, widths[0] if widths else 0)
        is_used = not widths or any(delimiter in line for line in lines[1:])
        return (is_used, sum(width in (header, header + 1) for width in widths) / max(1, len(widths)), header)

    order = "\t,;|" if kind is TableFormat.TSV else _DELIMITERS
    best = max(order, key=score)
    return " " if not score(best)[0] and '" "' in lines[0] else best
