"""Cells as text, and values of answers as cells of their column's type."""

from __future__ import annotations

import datetime
import math
from typing import Any, Final

import msgspec

from mapping.columns import ColumnType, Kind
from mapping.errors import RowError

_INT64: Final = 1 << 63
_EXACT_FLOAT: Final = 1 << 53
_EXACT: Final = {Kind.STRING: str, Kind.NUMBER: float, Kind.BOOLEAN: bool, Kind.VECTOR: list}
to_json: Final = msgspec.json.Encoder(decimal_format="number").encode


def cell_text(value: Any) -> str:  # Any: a cell
    """Return a cell as text: nothing for a missing one, `true` and `false`, whole floats without `.0`, JSON for nested values."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return (
            "" if math.isnan(value) else str(int(value) if value.is_integer() and abs(value) < _EXACT_FLOAT else value)
        )
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    if isinstance(value, dict | list | tuple):
        return to_json(value).decode()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")  # of Parquet files that do not mark texts as such
    return str(value)


def clean_text(text: str) -> str:
    """Return text with U+FFFD in place of bytes that were no text, which are halves of surrogate pairs until then."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def is_empty(value: Any) -> bool:  # Any: a cell
    """Return whether a cell is missing, or text of spaces."""
    return value is None or not (value if type(value) is str else cell_text(value)).strip()


def conform(value: Any, kind: ColumnType, name: str) -> Any:  # Any: JSON
    """Return a value of an answer as a cell. Raises RowError for a value of another type."""
    if value is None or kind.kind is Kind.JSON:
        return value
    if type(value) is _EXACT.get(kind.kind) and (not kind.choices or value in kind.choices):
        return value
    match kind.kind:
        case Kind.INTEGER if _is_number(value) and value == value // 1 and -_INT64 <= value < _INT64:
            return int(value)
        case Kind.NUMBER if _is_number(value):
            return float(value)
        case Kind.DATE if isinstance(value, str):
            try:
                return datetime.date.fromisoformat(value)
            except ValueError:
                pass
        case Kind.DATE if isinstance(value, datetime.date):
            return value
        case Kind.ARRAY if isinstance(value, list) and kind.item:
            return [conform(item, kind.item, name) for item in value]
        case Kind.OBJECT if isinstance(value, dict):
            return {field.name: conform(value.get(field.name), field.type, name) for field in kind.fields}
    raise RowError(f"{name!r} in the answer is not of type {kind}: {cell_text(value)[:80]}")


def from_text(value: Any, kind: ColumnType) -> Any:  # Any: a cell
    """Return a cell that may be text of a CSV file as JSON of its column's type, as far as it is."""
    if not isinstance(value, str) or kind.kind in (Kind.STRING, Kind.DATE):
        return value
    if not value:
        return None
    try:
        return msgspec.json.decode(value.lower() if kind.kind is Kind.BOOLEAN else value)
    except ValueError:
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
