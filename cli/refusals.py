"""Answers of the server as JSON or as failures, whose messages name the remedy."""

from __future__ import annotations

from typing import Any, Final

import httpx2

from cli.errors import CommandFailed, ExitCode, Refused, TryAgainLater

_REASONS: Final = {
    "Connection refused": "the connection was refused, so nothing listens there",
    "Name or service not known": "this host name is unknown",
    "Temporary failure in name resolution": "the host name cannot be looked up",
    "No address associated": "this host name has no address",
}


def parse(response: httpx2.Response) -> dict[str, Any]:  # Any: an answer of the API
    """Return the object in an answer. Raises CommandFailed for an answer without one."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise _not_ours(response)
    return answer


def check_event(data: dict[str, Any]) -> None:  # Any: JSON
    """Raise the error that ends a stream, such as that of a server which shuts down."""
    if (problem := data.get("error")) is not None:
        codes = {"service_unavailable": ExitCode.UNREACHABLE, "invalid_api_key": ExitCode.NOT_ALLOWED}
        raise CommandFailed(f"The stream ended early: {problem['message']}", codes.get(problem["code"], ExitCode.ERROR))


def check(response: httpx2.Response) -> None:
    """Raise the failure that an answer stands for, if it does."""
    if not response.is_error and not response.is_redirect:
        return
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        raise _not_ours(response) from None
    status = response.status_code
    message = f"The server answered {status}: {message}"
    if status in (409, 429) and response.headers.get("x-should-retry") != "false":
        wait = response.headers.get("retry-after", "")
        raise TryAgainLater(message, status, int(wait) if wait.isdecimal() else 1)
    codes = {401: ExitCode.NOT_ALLOWED, 403: ExitCode.NOT_ALLOWED, 503: ExitCode.UNREACHABLE}
    raise Refused(message, status, codes.get(status, ExitCode.ERROR))


def _not_ours(response: httpx2.Response) -> CommandFailed:
    """The failure for an answer without OpenAI's error object: another program listens there, or a proxy answered."""
    message = f"{response.url} answered {response.status_code} {response.reason_phrase}".rstrip()
    advice = "That is no answer of Millrace: check the address, which ends in /v1, and any proxy before it."
    code = ExitCode.UNREACHABLE if response.status_code in (502, 503, 504) else ExitCode.ERROR
    return CommandFailed(f"{message}. {advice}", code)


def reason_of(error: httpx2.HTTPError) -> str:
    """The reason for a failed call, in common words."""
    text = str(error)
    if isinstance(error, httpx2.TimeoutException):
        return "it did not answer in time"
    for part, reason in _REASONS.items():
        if part in text:
            return reason
    return text or type(error).__name__
