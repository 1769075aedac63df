"""JSON Lines: rows with the text of their objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from mapping.columns import Column, ColumnType, Kind
from mapping.errors import MappingError
from mapping.formats.encodings import bom_of, detect_encoding, read_lines
from mapping.formats.table import Row, Table


@dataclass(kw_only=True)
class JsonlTable(Table):
    """A file with a JSON object in each line; its columns are the keys of all objects."""

    bom: bytes = field(init=False)
    tail: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        with self.path.open("rb") as file:
            self.bom, from_bom = bom_of(file.read(4))
        self.encoding = from_bom or self.encoding or detect_encoding(self.path)
        keys: dict[str, None] = {}
        num_rows = 0
        for row in self._read():
            num_rows += 1
            keys.update(dict.fromkeys(row.values))
        if not keys:
            reason = "is empty" if not num_rows else "has no JSON object in any line"
            raise MappingError(
                f"{self.path.name} {reason}: each line of JSON Lines is an object with the cells of a row"
            )
        self.columns = tuple(Column(key, ColumnType(Kind.JSON)) for key in keys)

    def rows(self) -> Iterator[Row]:
        """Read the rows. A key that an object lacks has None."""
        missing = self._missing
        width = len(missing)
        for row in self._read():
            yield row if len(row.values) == width else row._replace(values={**missing, **row.values})

    @cached_property
    def _missing(self) -> dict[str, Any]:
        return dict.fromkeys(self.names)

    def _read(self) -> Iterator[Row]:
        """Read the objects as they are."""
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        blank = b""
        number = 0
        for line, (raw, text) in enumerate(read_lines(self.path, self.encoding or "utf-8"), 1):
            if text.isspace():
                blank += raw
                continue
            number += 1
            problem, values = None, {}
            try:
                values = decode(text)
            except (ValueError, RecursionError) as error:
                problem = f"line {line} is no JSON object: {str(error)[:200]}"
            yield Row(number, values, line, blank + raw if blank else raw, problem)
            blank = b""
        self.tail = blank
