"""Errors of requests that no endpoint takes: they name method and path, and the endpoint that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Final

from fastapi import Request
from fastapi.routing import iter_route_contexts

from core.errors import Problem

_MAX_PATH: Final = 128
_SIMILARITY: Final = 0.8


def unknown_path(request: Request) -> Problem:
    """The 404 of a path that does not exist. Nothing is redirected, since clients lose the body of a redirected POST."""
    path = request.scope["path"]
    meant = _near_miss(request, path)
    advice = f"Did you mean {meant}?" if meant else "GET /openapi.json lists the endpoints, and /docs shows them."
    message = f"Invalid URL ({request.method} {path[:_MAX_PATH]}): there is no such endpoint. {advice}"
    return Problem(status=404, message=message, code="unknown_url")


def wrong_method(request: Request) -> tuple[Problem, dict[str, str]]:
    """The 405 of a path that has other methods, with the `Allow` header."""
    path = request.scope["path"]
    allowed = ", ".join(sorted(_methods(request, path)))
    message = f"{request.method} {path[:_MAX_PATH]} is not allowed: this endpoint takes {allowed}."
    return Problem(status=405, message=message, code="method_not_allowed"), {"allow": allowed}


def _methods(request: Request, path: str) -> set[str]:
    """All methods of a path; HEAD is wherever GET is."""
    found = {
        method
        for route in iter_route_contexts(request.app.routes)
        if route.path_regex.fullmatch(path)
        for method in route.methods or ()
    }
    return found | {"HEAD"} if "GET" in found else found


def _near_miss(request: Request, path: str) -> str | None:
    for candidate in _corrections(path):
        if candidate != path and _methods(request, candidate):
            return candidate
    fixed = {str(route.path) for route in iter_route_contexts(request.app.routes) if "{" not in str(route.path)}
    return next(iter(get_close_matches(path[:_MAX_PATH], sorted(fixed), 1, _SIMILARITY)), None)


def _corrections(path: str) -> Iterator[str]:
    """The path without doubled slashes, a slash at its end, a doubled `/v1` or a prefix before it; then with `/v1`."""
    clean = re.sub(r"/{2,}", "/", "/" + path).rstrip("/")
    yield clean
    yield clean.lower()
    last = clean.rfind("/v1/")
    if last > 0:
        yield clean[last:]
    rest = clean.removeprefix("/api").removeprefix("/v1")
    yield f"/v1{rest}"
    yield rest or "/"
