"""Addresses of Postgres and Redis: their form, and sentences about those that cannot be reached. No password is repeated."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, urlsplit

from core.errors import Unreachable

_DATABASE: Final = "postgresql://USER:PASSWORD@HOST:5432/NAME"
_QUEUE: Final = "redis://HOST:6379/0"
_WRAPPED: Final = re.compile(
    r"^.*\bfailed: (?=\S)|^Error -?\d+ (?:while )?connecting to \S+\. |^\[Errno -?\d+\] |^FATAL:\s+"
)


def check_database_url(text: str) -> str:
    """Return the text. Raises ValueError for the URL of anything but a Postgres."""
    return _check(text, re.compile(r"postgres(?:ql)?(?:\+\w+)?"), f"a URL of Postgres, such as {_DATABASE}")


def check_redis_url(text: str) -> str:
    """Return the text. Raises ValueError for the URL of anything but a Valkey or Redis."""
    return _check(text, re.compile(r"rediss?|unix"), f"a URL of Valkey or Redis, such as {_QUEUE}")


def host_and_port(url: str, default_port: int) -> str:
    """Return `host:port`, or the path of a Unix socket."""
    parts = urlsplit(url)
    socket = parse_qs(parts.query).get("host", [""])[0]
    if parts.scheme == "unix" or socket.startswith("/"):
        return socket or parts.path
    host = parts.hostname or socket or "localhost"
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or default_port}"


def database_unreachable(url: str, error: Exception) -> Unreachable:
    """Return the failure of a connection to Postgres, from the driver's error."""
    reason = _reason(error)
    name = urlsplit(url).path.lstrip("/")
    if re.search(r'database ".*" does not exist', reason):
        advice = f"Create it (createdb {name}), or correct DATABASE_URL."
    elif re.search(r'password|role ".*" does not exist|pg_hba', reason):
        advice = "Correct the user and the password in DATABASE_URL, or create that user."
    else:
        advice = "Start Postgres there, or correct DATABASE_URL."
    return Unreachable(f"The database at {host_and_port(url, 5432)} cannot be used: {reason}.", advice)


def queue_unreachable(url: str, error: Exception) -> Unreachable:
    """Return the failure of a connection to Valkey or Redis, from the driver's error."""
    reason = _reason(error)
    is_refused = re.search(r"password|[Aa]uthentication|NOAUTH|WRONGPASS", reason)
    advice = (
        "Correct the password in REDIS_URL." if is_refused else "Start Valkey or Redis there, or correct REDIS_URL."
    )
    return Unreachable(f"The queue at {host_and_port(url, 6379)} cannot be used: {reason}.", advice)


def _check(text: str, scheme: re.Pattern[str], wanted: str) -> str:
    given, separator, _ = text.partition("://")
    if not separator:
        raise ValueError(f"must be {wanted}; this one has no ://")
    if not scheme.fullmatch(given):
        raise ValueError(f"must be {wanted}, not {given}://…")
    try:
        _ = urlsplit(text).port
    except ValueError:
        hint = "in a password, write @ as %40, : as %3A, / as %2F and # as %23"
        raise ValueError(f"must be {wanted}; its port cannot be read ({hint})") from None
    return text


def _reason(error: Exception) -> str:
    """Return the cause from a driver's error, without the address, which the sentence has already."""
    cause = getattr(error, "orig", None) or error
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    while (shorter := _WRAPPED.sub("", reason, count=1)) != reason:
        reason = shorter
    reason = reason.strip().rstrip(".")
    return reason[:1].lower() + reason[1:] if reason[1:2].islower() else reason
