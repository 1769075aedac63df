"""Envelope of a line whose body cannot be parsed: `custom_id`, `method` and `url`, so that the line can fail alone.

Only the span of the body is searched here; the strict parser reads the rest, with an empty object in the place of the body:

    {"custom_id": "a", "method": "POST", "url": "/v1/…", "body": {"n": NaN}}
                                                                 ~~~~~~~~~~  → {}
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from core.strict_json import InvalidJson, parse_json

_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_KEY: Final = re.compile(rb"\s*+(" + _STRING + rb")\s*+:\s*+", re.DOTALL)
_ATOM: Final = re.compile(_STRING + rb'|[^\s"{}\[\],:]++', re.DOTALL)
_BRACKET: Final = re.compile(_STRING + rb'|["{}\[\]]', re.DOTALL)
_COMMA: Final = re.compile(rb"\s*+,")
_LAST_KEYS: Final = re.compile(
    rb'\}\s*+((?:,\s*+"(?:custom_id|method|url)"\s*+:\s*+' + _STRING + rb"\s*+)++\})\s*+$", re.DOTALL
)

Envelope = dict[str, Any]  # Any: JSON; the body is empty


class _Span(NamedTuple):
    """`end` is None for a value that goes on behind the text."""

    start: int
    end: int | None


def read_envelope(line: bytes) -> Envelope | None:
    """Return the line without its body, or None when more than the body is invalid."""
    body = _find_body(line)
    if body is None or body.end is None or line[body.start : body.start + 1] != b"{":
        return None
    return _parse(line[: body.start] + b"{}" + line[body.end :])


def read_cut_envelope(start: bytes, end: bytes) -> Envelope | None:
    """Return the keys of a line of which only the beginning and the end are given. Each key is in one of the two, or missing."""
    body = _find_body(start)
    if body is None:
        return None
    last_keys = _LAST_KEYS.search(end)
    return _parse(start[: body.start] + b"{}" + (last_keys[1] if last_keys else b"}"))


def _parse(text: bytes) -> Envelope | None:
    try:
        value = parse_json(text)
    except InvalidJson:
        return None
    return value if isinstance(value, dict) else None


def _find_body(line: bytes) -> _Span | None:
    """The span of the last `body` of the outermost object."""
    position, found = line.find(b"{") + 1, None
    while key := _KEY.match(line, position):
        span = _Span(key.end(), _end_of_value(line, key.end()))
        if key[1] == b'"body"':
            found = span
        comma = None if span.end is None else _COMMA.match(line, span.end)
        if comma is None:
            break
        position = comma.end()
    return found


def _end_of_value(line: bytes, start: int) -> int | None:
    """The end of a value, valid or not; strings are passed over, since brackets may stand in them."""
    if line[start : start + 1] not in (b"{", b"["):
        atom = _ATOM.match(line, start)
        return atom.end() if atom else None
    depth = 0
    for match in _BRACKET.finditer(line, start):
        sign = match[0]
        if sign == b'"':  # a string without an end
            return None
        depth += (sign in (b"{", b"[")) - (sign in (b"}", b"]"))
        if depth == 0:
            return match.end()
    return None
