"""Cursors of a batch's results: places in the order in which lines ended, as text for clients."""

from __future__ import annotations

import re
from typing import Final

from core.errors import bad_request
from db.batch_results import BEGINNING, EndedAt

POLL_SECONDS: Final = 1.0  # between two reads of the rows by a stream that follows them
_CURSOR: Final = re.compile(r"^([0-9]{1,18})\.([0-9]{1,9})$")


def parse_cursor(text: str | None, param: str) -> EndedAt:
    """Parse a cursor that `format_cursor` wrote; None or 0 is the beginning."""
    if text is None or text == "0":
        return BEGINNING
    match = _CURSOR.match(text)
    if match is None:
        message = f"Invalid value for '{param}': use a cursor from an earlier response."
        raise bad_request(message, code="invalid_value", param=param)
    return EndedAt(int(match[1]), int(match[2]))


def format_cursor(place: EndedAt) -> str:
    """The cursor of a place, as text."""
    return f"{place.xact}.{place.line}"
