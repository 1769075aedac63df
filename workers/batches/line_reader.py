"""Read the lines of a batch input file, and parse each into a batch line or an error.

Memory stays flat for any file. Lines end at `\\n` only (one `\\r` before it is dropped): other Unicode line ends may stand
inside strings. A BOM may start the file. Source of the codes: the error table of the batch contract in `docs/decisions`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple

from core.errors import ApiError
from core.schemas.base import parse_body
from core.schemas.batch import BatchLine
from core.schemas.objects import BatchError
from core.strict_json import InvalidJson, parse_json

_CHUNK: Final = 1 << 16


class LineSpan(NamedTuple):
    """Position of a line: its 1-based number, which counts blank lines, and its first byte and length in the file."""

    number: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RawLine:
    """One non-blank line. `content` is None for a line over the limit."""

    span: LineSpan
    content: bytes | None

    @property
    def number(self) -> int:
        """The line's 1-based number."""
        return self.span.number


def read_lines(stream: BinaryIO, max_bytes: int) -> Iterator[RawLine]:
    """Yield the non-blank lines in order; of a line over `max_bytes`, at most that much is in memory."""
    number = offset = 0
    while raw := stream.readline(max_bytes + 3):
        number += 1
        begin, offset = offset, offset + len(raw)
        if number == 1 and raw.startswith(codecs.BOM_UTF8):
            begin, raw = begin + len(codecs.BOM_UTF8), raw.removeprefix(codecs.BOM_UTF8)
        content = raw.removesuffix(b"\n").removesuffix(b"\r")
        if len(content) > max_bytes:
            offset += _skip_rest(stream, raw)
            yield RawLine(LineSpan(number, begin, offset - begin), None)
        elif content.strip():
            yield RawLine(LineSpan(number, begin, len(content)), content)


def read_span(stream: BinaryIO, span: LineSpan) -> bytes:
    """Read the content of a line that `read_lines` found."""
    stream.seek(span.offset)
    return stream.read(span.length)


def _skip_rest(stream: BinaryIO, read: bytes) -> int:
    skipped = 0
    while read and not read.endswith(b"\n"):
        read = stream.readline(_CHUNK)
        skipped += len(read)
    return skipped


class LineParser:
    """Parses raw lines into batch lines; keeps every `custom_id`, since they may not repeat."""

    def __init__(self, endpoint: str, max_bytes: int) -> None:
        self._endpoint = endpoint
        self._max_bytes = max_bytes
        self._first_line_of: dict[str, int] = {}

    def parse(self, raw: RawLine) -> BatchLine | BatchError:
        """Parse a line, or return the error for which the whole file is rejected."""
        if raw.content is None:
            return BatchError(
                code="line_too_long", message=f"The line has more than {self._max_bytes} bytes.", line=raw.number
            )
        try:
            value = parse_json(raw.content)
        except InvalidJson as error:
            return BatchError(
                code="invalid_json_line", message=f"This line is not valid JSON: {error}.", line=raw.number
            )
        try:
            line = parse_body(BatchLine, value)
        except ApiError as error:
            return _line_error(error, value, raw.number)
        return self._checked(line, raw.number)

    def _checked(self, line: BatchLine, number: int) -> BatchLine | BatchError:
        if line.url != self._endpoint:
            return BatchError(
                code="url_mismatch",
                message=f"The url must be the batch's endpoint, {self._endpoint}.",
                param="url",
                line=number,
            )
        if line.body.get("stream") is True:
            return BatchError(
                code="invalid_request",
                message="'stream' must not be true in a batch.",
                param="body.stream",
                line=number,
            )
        first = self._first_line_of.setdefault(line.custom_id, number)
        if first != number:
            return BatchError(
                code="duplicate_custom_id",
                message=f"This custom_id was used before, on line {first}.",
                param="custom_id",
                line=number,
            )
        return line


def _line_error(error: ApiError, value: Any, number: int) -> BatchError:  # Any: parsed JSON of unknown shape
    problem = error.problem
    if not isinstance(value, dict):
        message = "A line must be a JSON object with custom_id, method, url and body."
        return BatchError(code="invalid_json_line", message=message, line=number)
    return BatchError(code=problem.code or "invalid_request", message=problem.message, param=problem.param, line=number)
