"""Columns and the types of their values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """Kind of a value. A `vector` is a list of 32-bit floats; `json` is any value, written as JSON text where types are fixed."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATE = "date"
    ARRAY = "array"
    OBJECT = "object"
    VECTOR = "vector"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A kind, with the type of the items of an array or the fields of an object; `choices` are the only values of a text."""

    kind: Kind
    item: ColumnType | None = None
    fields: tuple[Column, ...] = ()
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the shorthand, such as `string[]` or `low|high`."""
        if self.choices:
            return "|".join(self.choices)
        return f"{self.item}[]" if self.item else self.kind.value


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    type: ColumnType = field(default=ColumnType(Kind.STRING))
