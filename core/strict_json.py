"""Strict JSON: the parser of all input, request bodies and batch lines, and the line ends of all output.

Refuses values that JSON or the database cannot hold: NaN and infinities (1e400 too), integers that do not fit into 64 bits,
NUL characters, lone surrogates, invalid UTF-8, unlimited nesting and digits. Of duplicate keys the last one wins.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import pydantic_core

_LEAST: Final = -(1 << 63)
_MOST: Final = (1 << 64) - 1  # the limit of msgspec: a value that is parsed but cannot be encoded would end its worker
_NUL: Final = rb"\u0000"
_POSITION: Final = re.compile(r"^(.*) at line (\d+) column (\d+)$", re.DOTALL)
_LONE_SURROGATE: Final = "half of a surrogate pair, such as \\ud83d, is no character: text was cut inside an emoji"

# by the message of the parser
_REASONS: Final = {
    "invalid unicode code point": "a byte is not UTF-8",
    "unexpected end of hex escape": _LONE_SURROGATE,
    "lone leading surrogate in hex escape": _LONE_SURROGATE,
    "recursion limit exceeded": "it is nested too deeply",
    "trailing comma": "a trailing comma is not allowed",
    "trailing characters": "more text follows the end of the value",
}
# by the bytes at the position of the error
_STRAYS: Final = (
    (b"NaN", "NaN is not JSON, use null"),
    (b"-NaN", "NaN is not JSON, use null"),
    (b"nan", "NaN is not JSON, use null"),
    (b"Infinity", "Infinity is not JSON, use null"),
    (b"-Infinity", "Infinity is not JSON, use null"),
    (b"inf", "Infinity is not JSON, use null"),
    (b"None", "None is Python, use null"),
    (b"True", "True is Python, use true"),
    (b"False", "False is Python, use false"),
    (b"undefined", "undefined is JavaScript, use null"),
    (b"'", "a single quote; JSON has double quotes"),
    (b"\xe2\x80\x9c", "a typographic quote; JSON has straight double quotes"),
    (b"\xe2\x80\x9d", "a typographic quote; JSON has straight double quotes"),
    (b"\xef\xbb\xbf", "a byte order mark (U+FEFF), which may only start a file"),
    (b"\xc2\xa0", "a no-break space; JSON has ordinary spaces"),
    (b"//", "JSON has no comments"),
    (b"/*", "JSON has no comments"),
    (b"#", "JSON has no comments"),
    (b",", "a comma follows the end of the value"),
    (b"{", "a second value follows the first one"),
)


_LINE_ENDS: Final = {text.encode(): f"\\u{ord(text):04x}".encode() for text in ("\u0085", "\u2028", "\u2029")}
_LINE_END: Final = re.compile(b"|".join(_LINE_ENDS))


class InvalidJson(ValueError):
    """The bytes are not accepted as JSON; the message has the reason, and never the content."""


def parse_json(raw: bytes) -> Any:  # Any: any JSON value
    """Parse one JSON document."""
    try:
        value = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(_reason(str(error), raw)) from None
    _check_numbers(value)
    if b"\\" in raw and _NUL in raw:
        _check_texts(value)
    return value


def escape_line_ends(json: bytes) -> bytes:
    """Escape Unicode's line ends in JSON, where they can only stand in strings: many readers of lines cut there."""
    if json.isascii():  # a hundred times as fast as the search
        return json
    return _LINE_END.sub(lambda found: _LINE_ENDS[found[0]], json)


def _reason(message: str, raw: bytes) -> str:
    """Name the error of the parser and its position: a line only in a document of several lines."""
    match = _POSITION.match(message)
    if match is None:
        return message[:200]
    reason, line, column = match[1], int(match[2]), int(match[3])
    text = raw.split(b"\n", line)[line - 1]
    reason = _stray(reason, text, column - 1) or _REASONS.get(reason, reason)
    if reason.startswith("EOF"):
        reason = f"it ends {reason.removeprefix('EOF ')}"
    place = f"line {line} column {column}" if b"\n" in raw.rstrip() else f"column {column}"
    return f"{reason[:160]} ({place})"


def _stray(reason: str, text: bytes, index: int) -> str | None:
    """Name the word or sign at the position of an error; a string is passed over, since any word may stand in it."""
    if "string" in reason.removeprefix("key must be a string") or "escape" in reason:
        return None
    starts = (index, index - 1) if text[index - 1 : index] == b"-" else (index,)
    for start in starts:
        for stray, name in _STRAYS:
            if text.startswith(stray, max(0, start)):
                return name
    return None


def _check_numbers(value: Any) -> None:  # Any: a parsed JSON value
    """Check that each number can be held. Types are exact, since the parser makes no others."""
    stack = [(value,)]
    while stack:
        for item in stack.pop():
            kind = type(item)
            if kind is str:
                continue
            if kind is dict:
                stack.append(item.values())
            elif kind is list:
                stack.append(item)
            elif kind is int:
                if not _LEAST <= item <= _MOST:
                    raise InvalidJson("an integer does not fit into 64 bits")
            elif kind is float and not math.isfinite(item):
                raise InvalidJson("a number is too large to represent")


def _check_texts(value: Any) -> None:  # Any: as above
    """Check that no text has a NUL, which only an escape can spell."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += (*item, *item.values())
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, str) and "\0" in item:
            raise InvalidJson("the character U+0000 is not allowed in any string")
