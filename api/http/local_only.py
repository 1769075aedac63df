"""Who may come without a key where none was made: programs of this machine, not the pages of others that a browser on it shows.

A page elsewhere can have a browser send requests here: under its own name, if that is made to mean 127.0.0.1 (DNS rebinding),
or as a form, which needs nobody's leave. Both say where they come from, in `Host`, `Origin` and `Sec-Fetch-Site`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request

from core.errors import ApiError, Problem
from core.settings import is_loopback


def check_local(request: Request) -> None:
    """Raises 403 for what a page of another origin has sent, or what was sent to another name."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if not _is_here(f"//{host}"):
        raise _refused("Without API keys this server answers to the names of its own machine only, such as localhost.")
    is_elsewhere = origin is not None and not _is_here(origin)
    if is_elsewhere or request.headers.get("sec-fetch-site") == "cross-site":
        raise _refused("Without API keys this server does not answer to pages of other origins.")


def _is_here(address: str) -> bool:
    try:
        name = urlsplit(address).hostname
    except ValueError:
        return False
    return name is not None and (is_loopback(name) or name.endswith(".localhost"))


def _refused(message: str) -> ApiError:
    hint = " Make a key with `millrace keys create`, or set MILLRACE_OPEN_WITHOUT_KEYS=true to let everybody in."
    return ApiError(Problem(status=403, message=message + hint, code="not_local"))
