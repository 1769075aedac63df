"""The one JSON parser for everything that comes from outside: request bodies and batch lines.

Refuses what JSON or our storage cannot hold: NaN and infinities (1e400 too), integers that do not fit into 64 bits, NUL
characters, lone surrogates, bad UTF-8, nesting and digits without end. Duplicate keys: the last one wins, as everywhere.
"""

from __future__ import annotations

import math
from typing import Any, Final

import pydantic_core

_LEAST: Final = -(1 << 63)
_MOST: Final = (1 << 64) - 1  # what msgspec writes: a value that could come in but not go on would end its worker


class InvalidJson(ValueError):
    """The bytes are not JSON we accept; the message says why and never repeats the content."""


def parse_json(raw: bytes) -> Any:  # Any: it may be any JSON value; a wire type makes it something
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
    """Walk the value: faster than to look for spellings in the text, which may be long where its values are few."""
    stack = [value]
    while stack:
        item = stack.pop()
        kind = type(item)  # exact, since the parser makes nothing else
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
