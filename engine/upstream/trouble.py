"""Trouble with an upstream: the kinds that may be tried again, pauses before that, and errors that clients get.

| trouble | counts as an attempt | the server pauses |
|---|---|---|
| `Busy`: 429, 503 | no | for `Retry-After`, otherwise by back-off |
| `Unreachable`: no connection | no | by back-off, until a probe succeeds |
| `Broken`: 408, 425, 5xx, reset, half an answer, time-out | yes | after several in a row, as above |

Pauses follow the back-off with full jitter of the AWS Architecture Blog, "Exponential Backoff And Jitter".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from engine.types import Failed

MAX_PAUSE_SECONDS: Final = 3600.0  # a longer Retry-After is tried again after an hour
UNAVAILABLE: Final = "upstream_unavailable"
FAILED: Final = "upstream_error"
TIMED_OUT: Final = "upstream_timeout"

Uniform = Callable[[float, float], float]
draw: Final[Uniform] = random.SystemRandom().uniform

_BASE_SECONDS: Final = 0.5
_LONGEST_SECONDS: Final = 30.0
_MAX_CHARACTERS: Final = 1000
_BUSY: Final = (429, 503)
_AGAIN: Final = (408, 425)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error of the API: fields of `Failed`."""

    message: str
    code: str = FAILED
    status: int = 502
    kind: str | None = None
    param: str | None = None
    retry_seconds: float | None = None

    def failed(self, request_id: str, redact: Callable[[str], str]) -> Failed:
        """The end of a request; `redact` removes secrets that an upstream repeats."""
        return Failed(
            request_id=request_id,
            code=redact(self.code),
            message=redact(self.message),
            param=None if self.param is None else redact(self.param),
            status=self.status,
            kind=None if self.kind is None else redact(self.kind),
            retry_seconds=self.retry_seconds,
        )


class Trouble(Exception):
    """An attempt had no answer; another may have one."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Busy(Trouble):
    """The server refuses work for now; it names `retry_after` seconds, or None."""

    def __init__(self, problem: Problem, retry_after: float | None) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


class Unreachable(Trouble):
    """There is no connection to the server."""


class Broken(Trouble):
    """The server took the request and did not answer it properly."""

    @property
    def is_timeout(self) -> bool:
        """Did it take too long?"""
        return self.problem.code == TIMED_OUT


class Refused(Exception):
    """The server answered that the request cannot be fulfilled."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def error_answer(status: int, headers: Mapping[str, str], body: bytes, now: datetime | None = None) -> Exception:
    """The Busy, Broken or Refused that an answer other than 200 stands for."""
    problem = problem_of(status, body)
    if status in _BUSY:
        seconds = retry_after(headers, now or datetime.now(UTC))
        return Busy(msgspec.structs.replace(problem, retry_seconds=seconds), seconds)
    if status >= 500 or status in _AGAIN:
        return Broken(problem)
    if status == 401:
        text = f"The server of this model refused the key of its `api_key_env` (HTTP 401): {problem.message}"
        return Refused(Problem(message=text, code="upstream_unauthorized"))
    if status < 400:
        where = f" to {headers['location'][:200]}" if "location" in headers else ""
        text = f"The server of this model redirects{where} (HTTP {status}). Set `base_url` to the final address."
        return Refused(Problem(message=text))
    return Refused(problem)


def problem_of(status: int, body: bytes) -> Problem:
    """Read the error of an answer in OpenAI's shape, or in those of vLLM, FastAPI and proxies; others are quoted."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        document = None
    error = document.get("error", document) if isinstance(document, dict) else document
    if isinstance(error, dict):
        return _problem(status, error)
    text = error if isinstance(error, str) else body[: 4 * _MAX_CHARACTERS].decode(errors="replace")
    return Problem(message=_quoted(status, text), status=status)


def _problem(status: int, error: dict[str, Any]) -> Problem:  # Any: JSON
    code, kind, param = error.get("code"), error.get("type"), error.get("param")
    message = error.get("message", error.get("detail"))
    if message is not None and not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    return Problem(
        message=message[:_MAX_CHARACTERS] if message else _quoted(status, ""),
        code=code if isinstance(code, str) and code else FAILED,
        status=status,
        kind=kind if isinstance(kind, str) and kind else None,
        param=param if isinstance(param, str) and param else None,
    )


def _quoted(status: int, text: str) -> str:
    text = " ".join(text.split())[:_MAX_CHARACTERS]
    return f"The server of this model answered with HTTP {status}" + (f": {text}" if text else ".")


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that an answer asks to wait, from `retry-after-ms` or `retry-after` in seconds or as a date; None without them."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if (value := headers.get(name)) is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                date = parsedate_to_datetime(value)
            except ValueError:
                continue
            seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
        if seconds == seconds:  # not NaN
            return min(max(seconds, 0.0), MAX_PAUSE_SECONDS)
    return None


def back_off(number: int, uniform: Uniform) -> float:
    """Seconds before the next attempt after `number` failed ones, 1 or more; `uniform` draws between two numbers."""
    return uniform(0, min(_LONGEST_SECONDS, _BASE_SECONDS * 2 ** min(number, 16)))
