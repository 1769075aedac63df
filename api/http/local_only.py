"""Requests without a key, while no key exists: allow programs of this machine, refuse pages of other sites in its browser.

Such a page can make the browser send requests here: under its own name, if that resolves to 127.0.0.1 (DNS rebinding), or as a
form, which needs no permission. Both are recognised by `Host`, `Origin` and `Sec-Fetch-Site`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from core.errors import ApiError, Problem
from core.settings import is_loopback

_HINT: Final = " Make a key with `millrace keys create --scope admin`."


def check_local(request: Request, allowed: Collection[str] = ()) -> None:
    """Raise the 403 of a request from a page of another origin that is not `allowed`, or to another host name."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if not _is_local_address(f"//{host}"):
        raise _not_local(
            "Without API keys this server answers to the names of its own machine only, such as localhost."
        )
    if origin is not None and origin.lower() in allowed:
        return
    is_elsewhere = origin is not None and not _is_local_address(origin)
    if is_elsewhere or request.headers.get("sec-fetch-site") == "cross-site":
        raise _not_local(
            "Without API keys this server answers to pages of other origins only if MILLRACE_CORS_ORIGINS names them."
        )


def check_first_key(request: Request) -> None:
    """Raise the 403 of a request for the first key that no program of this machine sends, whatever the settings allow.

    Once that key exists, every other client is locked out.
    """
    peer = request.client.host if request.client else ""
    if not is_loopback(peer):
        message = "The first key can be created on the server's own machine only."
        raise ApiError(Problem(status=403, message=message + _HINT, code="not_local"))
    check_local(request)


def _is_local_address(address: str) -> bool:
    try:
        name = urlsplit(address).hostname
    except ValueError:
        return False
    return name is not None and (is_loopback(name) or name.endswith(".localhost"))


def _not_local(message: str) -> ApiError:
    hint = f"{_HINT.removesuffix('.')}, or set MILLRACE_OPEN_WITHOUT_KEYS=true to let every client in."
    return ApiError(Problem(status=403, message=message + hint, code="not_local"))
