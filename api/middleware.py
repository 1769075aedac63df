"""ASGI middleware of every request: its id and access log, headers and counter of its response, OpenAI's envelope for errors that
reach no handler, and HEAD."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import TOO_LARGE, problem_response
from api.http.request_log import RequestLog, request_log
from api.services.metrics import Metrics
from core import ids
from core.errors import SERVER_ERROR, Problem
from core.telemetry.origin import Origin
from core.telemetry.tracing import request_origin

log = structlog.get_logger()

_API_VERSION = "2020-10-01"  # what OpenAI's own servers send
_UNEXPECTED: Final = Problem(
    status=500,
    message="The server failed to answer this request. Its log has the reason, under the request id.",
    type=SERVER_ERROR,
)


_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
_CLIENT_CLOSED: Final = 499  # nginx's status of a request whose client left before a response
PROBES: Final = ("/health", "/healthz", "/readyz", "/metrics")  # logged at level debug, and not traced
_MAX_PATH: Final = 256
_SECRET: Final = re.compile(rb"(sk-)[0-9A-Za-z-]{16,}")  # a key in place of its id


@dataclass(slots=True)
class _Sent:
    """The part of a response that has been sent."""

    status: int = _CLIENT_CLOSED
    num_bytes: int = 0
    is_complete: bool = False


class AccessLog:
    """Gives each request an id, which is in all of its log lines, and logs one line when it has ended.

    The id is the client's own `x-request-id` or `x-client-request-id` if that is short and plain, else a new one. It is in
    the request's `state.request_id`, and with its trace in `request_log`. The line has no query, whose values may be private,
    and no client text but the path.
    """

    def __init__(self, app: ASGIApp, *, is_on: bool = True) -> None:
        self._app = app
        self._is_on = is_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, sent = time.perf_counter(), _Sent()
        path = _shown_path(scope)
        log_of = RequestLog(_request_origin(scope, path))
        scope.setdefault("state", {})["request_id"] = log_of.origin.request_id
        request_log.set(log_of)

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.status = message["status"]
            else:
                sent.num_bytes += len(message.get("body", b""))
                sent.is_complete = not message.get("more_body", False)
            await send(message)

        with structlog.contextvars.bound_contextvars(**log_of.origin.log_fields()):
            try:
                await self._app(scope, receive, send_and_count)
            finally:
                if self._is_on:
                    _log_access(scope, path, log_of, sent, time.perf_counter() - began)


def _request_origin(scope: Scope, path: str) -> Origin:
    """The id and trace of a request: those of its client, else a new id, and a new trace if traces are on."""
    headers = Headers(scope=scope)
    origin = Origin(request_id=_request_id(headers))
    if (parent := headers.get("traceparent")) is not None:
        origin = Origin.of_headers(origin.request_id, parent, ",".join(headers.getlist("tracestate")))
    return request_origin(origin, path)


def _request_id(headers: Headers) -> str:
    for name in ("x-request-id", "x-client-request-id"):
        if _REQUEST_ID.fullmatch(given := headers.get(name, "")):
            return given
    return ids.new_id(ids.REQUEST)


def _shown_path(scope: Scope) -> str:
    path = scope.get("raw_path") or scope["path"].encode("ascii", "backslashreplace")  # raw: without control characters
    return _SECRET.sub(rb"\1...", path)[:_MAX_PATH].decode("ascii", "replace")


def _log_access(scope: Scope, path: str, log_of: RequestLog, sent: _Sent, seconds: float) -> None:
    caller = scope["state"].get("caller")
    fields = {"key": caller and caller.key_id, "tenant": caller and caller.tenant, **log_of.ids}
    write = log.debug if scope["path"] in PROBES else log.info
    write(
        "request",
        method=scope["method"],
        path=path,
        status=sent.status,
        ms=round(1000 * seconds, 1),
        bytes=sent.num_bytes,
        **{name: value for name, value in fields.items() if value},
        **({} if sent.is_complete else {"is_cut_off": True}),
    )


class ResponseHeaders:
    """Adds the request id, the processing time, the api version, `nosniff`, and `state.response_headers` of the request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, route = time.perf_counter(), None

        async def send_with_headers(message: Message) -> None:
            nonlocal route
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = scope["state"]["request_id"]
                headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - began)))
                headers["openai-version"] = _API_VERSION
                headers["x-content-type-options"] = "nosniff"
                for name, value in scope["state"].get("response_headers", {}).items():
                    headers[name] = value
                route = getattr(scope.get("route"), "path", "unknown")
                self._metrics.requests.labels(route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, send_with_headers)
        if route is not None:
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - began)


class UnexpectedErrors:
    """Logs an exception that no handler expects, and responds 500 unless a response has begun.

    A handler of `Exception` would run outside of all middleware: its responses would have no headers and not be counted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if scope["type"] != "http":
                raise
            request_id = scope["state"]["request_id"]
            log.error("request_failed", route=scope["path"], request_id=request_id, exc_info=error)
            if is_started:
                raise
            await problem_response(_UNEXPECTED)(scope, receive, send)


class TooLargeEnvelope:
    """Replaces the framework's plain-text 413, which bypasses all error handlers, by OpenAI's envelope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_replaced = False

        async def send_envelope(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start" and message["status"] == 413:
                is_replaced = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/plain")
                if is_replaced:
                    await problem_response(TOO_LARGE)(scope, receive, send)
            if not is_replaced:
                await send(message)

        await self._app(scope, receive, send_envelope)


class HeadAsGet:
    """Answers HEAD on every path that has a GET: runs that endpoint, sends its head, and ends it in place of its body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        get_scope, is_sent, is_read = {**scope, "method": "GET"}, asyncio.Event(), False

        async def receive_until_sent() -> Message:
            nonlocal is_read
            if not is_read:
                message = await receive()
                is_read = not message.get("more_body", False)
                return message
            await is_sent.wait()
            return {"type": "http.disconnect"}

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                if "route" in get_scope:
                    scope["route"] = get_scope["route"]  # the label of the request counter
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                is_sent.set()

        await self._app(get_scope, receive_until_sent, send_head)
