"""Strict JSON parser for all input: request bodies and batch lines.

Refuses values that JSON or the database cannot hold: NaN and infinities (1e400 too), integers that do not fit into 64 bits,
NUL characters, lone surrogates, invalid UTF-8, unlimited nesting and digits. Of duplicate keys the last one wins.
"""

from __future__ import annotations

import math
from typing import Any, Final

import pydantic_core

_LEAST: Final = -(1 << 63)
_MOST: Final = (1 << 64) - 1  # the limit of msgspec: a value that is parsed but cannot be encoded would end its worker


class InvalidJson(ValueError):
    """The bytes are not accepted as JSON; the message has the reason, and never the content."""


def parse_json(raw: bytes) -> Any:  # Any: any JSON value
    """Parse one JSON document."""
    try:
        value = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(_reason(error)) from None
    _check(value)
    return value


def _reason(error: ValueError) -> str:
    text = str(error).split("\n", 1)[0]
    return text if len(text) < 200 else text[:200]


def _check(value: Any) -> None:  # Any: a parsed JSON value
    """Check each value: faster than a search in the text, which may be long and have few values."""
    stack = [value]
    while stack:
        item = stack.pop()
        kind = type(item)  # exact types, since the parser makes no others
        if kind is str:
            if "\0" in item:
                raise InvalidJson("the character U+0000 is not allowed in any string")
        elif kind is dict:
            stack.extend(item)
            stack.extend(item.values())
        elif kind is list:
            stack.extend(item)
        elif kind is int:
            if not _LEAST <= item <= _MOST:
                raise InvalidJson("an integer does not fit into 64 bits")
        elif kind is float and not math.isfinite(item):
            raise InvalidJson("a number is too large to represent")
