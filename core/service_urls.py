"""Addresses of Postgres, Redis and files: their form, and sentences about those out of reach. No password is repeated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from core.errors import Unreachable

_DATABASE: Final = "postgresql://USER:PASSWORD@HOST:5432/NAME"
_QUEUE: Final = "redis://HOST:6379/0"
_FILES: Final = "a URL of a place for files, such as s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY"
_OBJECTS: Final = re.compile(r"(?:s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]{1,221}[A-Za-z0-9](?:/[A-Za-z0-9._=+-]+)*/?")
_WRAPPED: Final = re.compile(
    r"^.*\bfailed: (?=\S)|^Error -?\d+ (?:while )?connecting to \S+\. |^\[Errno -?\d+\] |^FATAL:\s+"
)
_OPENSSL_LINE: Final = re.compile(r"\.? \(_ssl\.c:\d+\)")


def check_database_url(text: str) -> str:
    """Return the text. Raises ValueError for the URL of anything but a Postgres."""
    return _check(text, re.compile(r"postgres(?:ql)?(?:\+\w+)?"), f"a URL of Postgres, such as {_DATABASE}")


def check_redis_url(text: str) -> str:
    """Return the text. Raises ValueError for the URL of anything but a Valkey or Redis, and for TLS in one without it."""
    _check(text, re.compile(r"rediss?|unix"), f"a URL of Valkey or Redis, such as {_QUEUE}")
    if not text.startswith("rediss:") and "ssl_" in urlsplit(text).query:
        raise ValueError("must begin with rediss:// if it has ssl_ options, since only that is TLS")
    return text


def check_files_url(text: str) -> str:
    """Return the text, without a slash at its end. Raises ValueError for a URL that names no place for files."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("s3", "gs", "az", "file"):
        raise ValueError(
            f"must be {_FILES}; not {scheme[:16]}://…" if separator else f"must be {_FILES}; this one has no ://"
        )
    if "@" in rest.partition("/")[0]:
        raise ValueError(
            "must have no credentials in it: set them in the variables of the cloud's own tools, see docs/files.md"
        )
    if scheme == "file":
        if not rest.startswith("/") or any(sign in rest for sign in "?#"):
            raise ValueError("must have three slashes and an absolute path, such as file:///srv/millrace/files")
        return text
    if rest.strip("/") == "" or rest.startswith("/"):
        raise ValueError(f"has no bucket: write {scheme}://BUCKET/PREFIX")
    if not _OBJECTS.fullmatch(text) or "/../" in f"{rest}/" or "/./" in f"{rest}/":
        raise ValueError(
            f"must be {scheme}://BUCKET/PREFIX, where both have letters, digits and . _ - only, and nothing follows the prefix"
        )
    return text.rstrip("/")


def directory_of(files_url: str) -> Path | None:
    """Return the directory of a `file:` URL; None for object storage."""
    scheme, _, rest = files_url.partition("://")
    return Path(unquote(rest)) if scheme == "file" else None


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
    if advice := _tls_advice(reason, "sslrootcert", "DATABASE_URL"):
        pass
    elif re.search(r"invalid (connection option|\w+ value)", reason):
        advice = "Correct the part of DATABASE_URL behind the question mark."
    elif re.search(r"unsupported startup parameter|command-line options", reason):
        advice = "Let the pooler ignore it: ignore_startup_parameters = options (see deploy/pgbouncer/pgbouncer.ini)."
    elif re.search(r'database ".*" does not exist|no such database', reason):
        advice = f"Create it (createdb {name}), or correct DATABASE_URL."
    elif re.search(r'password|SASL|role ".*" does not exist|pg_hba', reason):
        advice = "Correct the user and the password in DATABASE_URL, or create that user."
    else:
        advice = "Start Postgres there, or correct DATABASE_URL."
    return Unreachable(f"The database at {host_and_port(url, 5432)} cannot be used: {reason}.", advice)


def queue_unreachable(url: str, error: Exception) -> Unreachable:
    """Return the failure of a connection to Valkey or Redis, from the driver's error."""
    reason = _reason(error)
    is_refused = re.search(r"password|[Aa]uthentication|NOAUTH|WRONGPASS", reason)
    with_tls = " with TLS on this port" if url.startswith("rediss:") else ""
    if with_tls and re.search("no such file", reason, re.IGNORECASE):
        reason = "the URL names a file of certificates that does not exist"
    advice = _tls_advice(reason, "ssl_ca_certs", "REDIS_URL") or (
        "Correct the password in REDIS_URL."
        if is_refused
        else f"Start Valkey or Redis there{with_tls}, or correct REDIS_URL."
    )
    return Unreachable(f"The queue at {host_and_port(url, 6379)} cannot be used: {reason}.", advice)


def _tls_advice(reason: str, option: str, variable: str) -> str:
    """Return the remedy for a failure of TLS; empty for another failure."""
    if re.search(r"match|not valid for", reason) and re.search(r"host ?name|IP address|not valid for", reason):
        return f"Use a name of its certificate as the host in {variable}, or give it a certificate with this name."
    if re.search(r"certificate", reason, re.IGNORECASE):
        return f"Name the certificate of its authority in {variable}: ?{option}=/path/ca.pem"
    if re.search(r"WRONG_VERSION_NUMBER|wrong version number|does not support SSL", reason):
        return f"The server has no TLS on this port: correct the port in {variable}, or turn TLS on there."
    if re.search(r"SSL required|no encryption|SSL off|connection closed by server", reason, re.IGNORECASE):
        with_tls = "rediss://" if variable == "REDIS_URL" else "?sslmode=verify-full&sslrootcert=/path/ca.pem"
        return f"If the server wants TLS on this port, write {with_tls} in {variable}."
    return ""


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
    reason = _OPENSSL_LINE.sub("", reason)
    reason = reason.strip().rstrip(".")
    return reason[:1].lower() + reason[1:] if reason[1:2].islower() else reason
