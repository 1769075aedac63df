"""Errors of this project, and the problem that describes a failure to OpenAI's clients.

A `Problem` is stored with a job, sent in an event and written to an error file; `ApiError` carries one out of a handler.
Source of the fields and types: the error object of OpenAI's API description.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"

# codes of failures that only the operator ends: the key, the account or the name of a model at a server upstream
UPSTREAM_UNAUTHORIZED: Final = "upstream_unauthorized"
UPSTREAM_NOT_FOUND: Final = "upstream_not_found"
UPSTREAM_ACCOUNT: Final = "upstream_account"
OPERATORS_FAULT: Final = frozenset({UPSTREAM_UNAUTHORIZED, UPSTREAM_NOT_FOUND, UPSTREAM_ACCOUNT})


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A failure: an HTTP status, the four fields of the error envelope, and the pause before a retry if it is known."""

    status: int
    message: str
    type: str = INVALID_REQUEST
    code: str | None = None
    param: str | None = None
    retry_seconds: float | None = None

    def envelope(self) -> dict[str, Any]:
        """Return `{"error": {message, type, param, code}}`; all four keys are always present."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def to_json(self) -> str:
        """Return the text that a `problem` column holds."""
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_json(stored: str) -> Problem:
        """Parse the text of a `problem` column."""
        return msgspec.json.decode(stored, type=Problem)


class MillraceError(Exception):
    """Base of this project's errors; the docstring of a class is its default message."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").splitlines()[0])


class ConfigError(MillraceError):
    """A setting or a model file is wrong; the message names the key."""


class Unreachable(MillraceError):
    """A server that is needed does not answer; `problem` has host, port and reason, `advice` the remedy."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem} {advice}")
        self.problem = problem
        self.advice = advice


class SchemaMismatch(MillraceError):
    """The database schema is not the one this code needs. Run `millrace db upgrade`."""


class SchemaLocked(MillraceError):
    """A migration did not get the lock on a table. Run `millrace db upgrade` again."""


class ApiError(MillraceError):
    """Answers a request with a problem."""

    def __init__(self, problem: Problem, headers: dict[str, str] | None = None) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.headers = headers or {}


def bad_request(message: str, *, code: str, param: str | None = None) -> ApiError:
    """Return a 400: the caller must change the request."""
    return ApiError(Problem(status=400, message=message, code=code, param=param))


def not_found(message: str, *, code: str | None = None, param: str | None = None) -> ApiError:
    """Return a 404 for an object that does not exist or belongs to another tenant: both look the same."""
    return ApiError(Problem(status=404, message=message, code=code, param=param))


def unavailable(message: str) -> ApiError:
    """Return a 503: the request is valid and may be repeated shortly."""
    return ApiError(Problem(status=503, message=message, type=SERVER_ERROR, code="service_unavailable"))
