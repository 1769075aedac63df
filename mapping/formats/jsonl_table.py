"""JSON Lines: rows with the text of their objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from core.strict_json import InvalidJson, parse_json
from mapping.columns import Column, ColumnType, Kind
from mapping.errors import MappingError
from mapping.formats.encodings import bom_of, encoding_of, read_lines
from mapping.formats.table import Row, Table

_INT64: Final = 1 << 63
_INEXACT: Final = frozenset((int, list))  # their tag is not always their type
_KINDS: Final = {str: Kind.STRING, bool: Kind.BOOLEAN, int: Kind.INTEGER, float: Kind.NUMBER}


@dataclass(kw_only=True)
class JsonlTable(Table):
    """A file with a JSON object in each line. Its columns are the keys of all objects, with a type if all values share it."""

    bom: bytes = field(init=False)
    tail: bytes = field(init=False, default=b"")
    _missing: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.bom = bom_of(self.path)[0]
        self.encoding = encoding_of(self.path, self.encoding)
        tags: dict[str, set[Any]] = {}  # Any: see _tag
        start = ""
        for row in self._read():
            start = start or row.raw.decode(self.encoding, "replace").strip()
            if start == "[":
                break
            for key, value in row.values.items():
                tags.setdefault(key, set()).add(_tag(value))
        if not tags:
            hint = ": `jq -c .[]` makes lines of an array" if start.startswith("[") else ": each line is a row"
            raise MappingError(f"{self.label} has no JSON object in any line{hint}")
        self.columns = tuple(Column(key, _type(found)) for key, found in tags.items())
        self._missing = dict.fromkeys(tags)

    def rows(self) -> Iterator[Row]:
        """Read the rows. A key that an object lacks has None."""
        width = len(self._missing)
        for row in self._read():
            yield row if len(row.values) == width else row._replace(values={**self._missing, **row.values})

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
            except (ValueError, RecursionError):
                problem = f"line {line} is no JSON object{_reason(text)}"
            yield Row(number, values, line, blank + raw if blank else raw, problem)
            blank = b""
        self.tail = blank


def _reason(text: str) -> str:
    """Return the reason why a text is no JSON, in words of its author."""
    try:
        parse_json(text.strip().encode("utf-8", "replace"))
    except InvalidJson as error:
        return f": {error}"
    return ""


def _tag(value: Any) -> Any:  # Any: a JSON value, and its type, or the set of the types of a list's items
    """Return the type of a value, as far as columns can have it."""
    kind = type(value)
    if kind is list:
        kinds = frozenset(map(type, value))
        return frozenset(map(_tag, value)) if kinds & _INEXACT else kinds
    return kind if kind is not int or -_INT64 <= value < _INT64 else object


def _type(tags: set[Any] | frozenset[Any]) -> ColumnType:  # Any: tags
    """Return the type that all values of a column share, or `json`."""
    kinds = {tag for tag in tags if tag is not type(None)}
    if kinds and all(isinstance(kind, frozenset) for kind in kinds):
        item = _type(frozenset().union(*kinds))
        return ColumnType(Kind.JSON) if item.kind is Kind.JSON else ColumnType(Kind.ARRAY, item)
    if kinds == {int, float}:
        return ColumnType(Kind.NUMBER)
    return ColumnType(_KINDS.get(kinds.pop(), Kind.JSON) if len(kinds) == 1 else Kind.JSON)
