"""HTTP ranges of immutable content (RFC 9110, section 14): one range, else the whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from typing import Final

from starlette.datastructures import Headers

from core.errors import ApiError, Problem

_RANGE: Final = re.compile(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Bytes `start` up to, not including, `end` of a content of `size` bytes."""

    start: int
    end: int
    size: int

    @property
    def is_partial(self) -> bool:
        """True when it is less than the whole content."""
        return (self.start, self.end) != (0, self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validators:
    """Headers by which a client recognises unchanged content; a stored file never changes."""

    etag: str
    last_modified: str

    @staticmethod
    def of(file_id: str, created_at: datetime) -> Validators:
        """The validators of a stored file."""
        return Validators(etag=f'"{file_id}"', last_modified=format_datetime(created_at, usegmt=True))

    def headers(self) -> dict[str, str]:
        """As response headers."""
        return {"etag": self.etag, "last-modified": self.last_modified, "accept-ranges": "bytes"}


def requested_span(headers: Headers, size: int, validators: Validators) -> Span:
    """The span of the request's Range; raises 416 when it begins after the end.

    Several ranges, units other than bytes and an If-Range that does not match mean the whole.
    """
    whole = Span(start=0, end=size, size=size)
    match = _RANGE.fullmatch(headers.get("range", ""))
    condition = headers.get("if-range")
    if not match or not any(match.groups()) or condition not in (None, validators.etag, validators.last_modified):
        return whole
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return whole
    if start >= size:
        raise _unsatisfiable(size)
    return Span(start=start, end=end, size=size)


def _unsatisfiable(size: int) -> ApiError:
    message = f"The range lies outside of the file, which has {size} bytes."
    problem = Problem(status=416, message=message, code="range_not_satisfiable", param="Range")
    return ApiError(problem, {"content-range": f"bytes */{size}"})
