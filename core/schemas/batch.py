"""Schemas of a batch: the request that creates it, the lines of its input file, and those of its two result files."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from pydantic import Field, field_validator

from core.errors import Problem
from core.schemas.base import Metadata, RequestModel
from core.schemas.endpoints import ENDPOINTS
from core.strict_json import escape_line_ends

MAX_CUSTOM_ID: Final = 512
NO_BODY: Final = "null"  # stored for a line whose body cannot be read
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_UNIT_SECONDS: Final = {"m": 60, "h": 3600, "d": 86400}
_MAX_WINDOW_SECONDS: Final = 30 * 86400


BatchPriority = Annotated[int, Field(ge=-100, le=100)]


class OutputExpiry(RequestModel):
    """Expiry of the output file, in seconds after its creation."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class BatchOptions(RequestModel):
    """What a new batch may be given beside its input; `priority` is an extension."""

    completion_window: str = Field("24h", max_length=16)
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None
    priority: BatchPriority = 0

    @field_validator("completion_window")
    @classmethod
    def _known_window(cls, value: str) -> str:
        return check_window(value)

    def columns(self) -> dict[str, Any]:  # Any: the columns' own types
        """Return the columns of the batch's row that hold these options."""
        return {
            "completion_window": self.completion_window,
            "window_seconds": window_seconds(self.completion_window),
            "output_expires_seconds": self.output_expires_after.seconds if self.output_expires_after else None,
            "metadata_json": json.dumps(self.metadata) if self.metadata is not None else None,
            "priority": self.priority,
        }


class BatchCreate(BatchOptions):
    """`POST /v1/batches`."""

    input_file_id: str = Field(min_length=1, max_length=256)
    endpoint: str = Field(max_length=256)
    completion_window: str = Field(max_length=16)

    @field_validator("endpoint")
    @classmethod
    def _known_endpoint(cls, value: str) -> str:
        if value not in ENDPOINTS:
            raise ValueError(f"supported endpoints are {', '.join(ENDPOINTS)}")
        return value


def window_seconds(window: str) -> int | None:
    """Convert `24h` to 86400; None for a window that is not accepted."""
    match = _WINDOW.fullmatch(window)
    if not match:
        return None
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]]
    return seconds if seconds <= _MAX_WINDOW_SECONDS else None


def check_window(value: str) -> str:
    """Return a valid window unchanged. Raises ValueError."""
    if window_seconds(value) is None:
        raise ValueError("use '24h', or minutes, hours or days such as '90m', '12h' or '7d', at most 30 days")
    return value


class LineResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response of the sync endpoint; `body` is JSON text and is written as it is stored."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a line has no response."""

    code: str
    message: str


class ResultLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of an output or error file."""

    id: str
    custom_id: str
    response: LineResponse | None = None
    error: LineError | None = None


_encode = msgspec.json.Encoder().encode


def answered_line(job_id: str, custom_id: str, body: str) -> bytes:
    """Encode a line of the output file."""
    response = LineResponse(status_code=200, request_id=_request_id(job_id), body=msgspec.Raw(body.encode()))
    return encode_line(ResultLine(id=job_id, custom_id=custom_id, response=response))


def failed_line(job_id: str, custom_id: str, problem: Problem) -> bytes:
    """Encode a line of the error file: an HTTP failure with the error body, any other with a code."""
    if problem.status == 0:
        error = LineError(code=problem.code or "request_failed", message=problem.message)
        return encode_line(ResultLine(id=job_id, custom_id=custom_id, error=error))
    body = msgspec.Raw(_encode(problem.envelope()))
    response = LineResponse(status_code=problem.status, request_id=_request_id(job_id), body=body)
    return encode_line(ResultLine(id=job_id, custom_id=custom_id, response=response))


def encode_line(line: msgspec.Struct) -> bytes:
    """Encode a line of JSON Lines that readers such as `str.splitlines()` do not cut in the middle."""
    return escape_line_ends(_encode(line)) + b"\n"


def _request_id(job_id: str) -> str:
    """Return the id of a line with the prefix of requests: a line is one request."""
    return "req_" + job_id.rsplit("_", 1)[-1]


def unrun_line_problem(code: Literal["batch_expired", "batch_cancelled", "request_timeout"], message: str) -> Problem:
    """Return the problem of a line that did not run; status 0 marks it as no HTTP failure."""
    return Problem(status=0, message=message, type="batch_error", code=code)


class BatchLine(RequestModel):
    """A line of an input file; the schema of the endpoint checks the body."""

    custom_id: str = Field(min_length=1, max_length=MAX_CUSTOM_ID)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]  # Any: the schema of the endpoint checks it


class CheckedLine(NamedTuple):
    """The stored parts of a checked line; `body` is its JSON as in the file."""

    custom_id: str
    body: str


class _Parts(msgspec.Struct, frozen=True):
    """Raw values: a key may repeat, and only its last value must have the right type."""

    custom_id: msgspec.Raw
    body: msgspec.Raw


_split = msgspec.json.Decoder(_Parts).decode
_decode_text = msgspec.json.Decoder(str).decode


def read_checked_line(content: bytes) -> CheckedLine:
    """Split a line that was checked before, which is much faster than the check. Of duplicate keys the last one wins."""
    parts = _split(content)
    return CheckedLine(_decode_text(parts.custom_id), bytes(parts.body).decode())
