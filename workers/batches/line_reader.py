"""Read the lines of a batch input file, and parse each into a batch line or an error.

Memory stays flat for any file: of a line over the limit, only its beginning and its end are kept. Lines end at `\\n` only
(one `\\r` before it is dropped): other Unicode line ends may stand inside strings. A BOM may start the file. Source of the
codes: the error table of the batch contract in `docs/decisions`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple

from core.errors import ApiError, Problem
from core.schemas.base import parse_body
from core.schemas.batch import BatchLine
from core.schemas.objects import BatchError
from core.strict_json import InvalidJson, parse_json
from mapping.disk_map import DiskMap
from workers.batches.envelope import Envelope, read_cut_envelope, read_envelope

_CHUNK: Final = 1 << 16
_ID_BYTES: Final = 32 << 20


class LineSpan(NamedTuple):
    """Position of a line: its 1-based number, which counts blank lines, and its first byte and length in the file."""

    number: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RawLine:
    """One non-blank line. Of a line over the limit, `content` is the beginning and `cut_end` the end; else that is None."""

    span: LineSpan
    content: bytes
    cut_end: bytes | None = None

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
            length, end = _skip_rest(stream, raw)
            offset += length
            yield RawLine(LineSpan(number, begin, offset - begin), content, end)
        elif content.strip():
            yield RawLine(LineSpan(number, begin, len(content)), content)


def read_span(stream: BinaryIO, span: LineSpan) -> bytes:
    """Read the content of a line that `read_lines` found."""
    stream.seek(span.offset)
    return stream.read(span.length)


def _skip_rest(stream: BinaryIO, read: bytes) -> tuple[int, bytes]:
    """Skip the rest of a line; returns the length of the rest, and the last bytes of the line."""
    skipped, end = 0, read[-_CHUNK:]
    while read and not read.endswith(b"\n"):
        read = stream.readline(_CHUNK)
        skipped += len(read)
        end = (end + read)[-_CHUNK:]
    return skipped, end


@dataclass(frozen=True, slots=True)
class UnreadableLine:
    """A line with a valid envelope and a body that cannot be used: it fails alone."""

    custom_id: str
    problem: Problem


class LineParser:
    """Parses raw lines into batch lines; keeps every `custom_id`, since they may not repeat, many of them on disk."""

    def __init__(self, endpoint: str, max_bytes: int) -> None:
        self._endpoint = endpoint
        self._max_bytes = max_bytes
        self._first_line_of = DiskMap(_ID_BYTES)

    def close(self) -> None:
        """Delete the `custom_id`s."""
        self._first_line_of.close()

    def parse(self, raw: RawLine) -> BatchLine | UnreadableLine | BatchError:
        """Parse a line, or return the problem of the line alone, or the error for which the whole file is rejected."""
        if raw.cut_end is not None:
            return self._parse_cut(raw, raw.cut_end)
        try:
            value = parse_json(raw.content)
        except InvalidJson as error:
            if (envelope := read_envelope(raw.content)) is None:
                message = f"Line {raw.number} is not valid JSON: {error}."
                return BatchError(code="invalid_json_line", message=message, line=raw.number)
            message = f"The body of line {raw.number} cannot be read: {error}."
            problem = Problem(status=400, message=message, code="invalid_json", param="body")
            return self._unreadable(envelope, problem, raw.number)
        line = self._parse_value(value, raw.number)
        return line if isinstance(line, BatchError) else self._checked(line, raw.number)

    def _parse_cut(self, raw: RawLine, end: bytes) -> UnreadableLine | BatchError:
        """A line over the limit: its `custom_id` may stand before or after the body."""
        message = f"Line {raw.number} has {raw.span.length} bytes; the limit is {self._max_bytes}. Shorten it."
        envelope = read_cut_envelope(raw.content, end)
        if envelope is None or not isinstance(envelope.get("custom_id"), str):
            return BatchError(code="line_too_long", message=message, line=raw.number)
        missing: Envelope = {"method": "POST", "url": self._endpoint}
        problem = Problem(status=413, message=message, code="line_too_long", param="body")
        return self._unreadable(missing | envelope, problem, raw.number)

    def _unreadable(self, envelope: Envelope, problem: Problem, number: int) -> UnreadableLine | BatchError:
        line = self._parse_value(envelope, number)
        checked = line if isinstance(line, BatchError) else self._checked(line, number)
        return checked if isinstance(checked, BatchError) else UnreadableLine(checked.custom_id, problem)

    def _parse_value(self, value: Any, number: int) -> BatchLine | BatchError:  # Any: parsed JSON of unknown shape
        try:
            return parse_body(BatchLine, value)
        except ApiError as error:
            return _line_error(error, value, number)

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
        name = line.custom_id.encode("utf-8", "surrogatepass")
        if self._first_line_of.add(name, b"%d" % number):
            return line
        first = self._first_line_of.get(name)
        assert first is not None, "a name that cannot be added is there"
        message = f"This custom_id was used before, on line {int(first)}."
        return BatchError(code="duplicate_custom_id", message=message, param="custom_id", line=number)


def _line_error(error: ApiError, value: Any, number: int) -> BatchError:  # Any: parsed JSON of unknown shape
    problem = error.problem
    if not isinstance(value, dict):
        message = "A line must be a JSON object with custom_id, method, url and body."
        return BatchError(code="invalid_json_line", message=message, line=number)
    return BatchError(code=problem.code or "invalid_request", message=problem.message, param=problem.param, line=number)
