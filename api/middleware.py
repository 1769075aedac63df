"""ASGI middleware of every response: headers, the request counter, and OpenAI's envelope for errors that reach no handler."""

from __future__ import annotations

import time
from typing import Final

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import TOO_LARGE, problem_response
from api.services.metrics import Metrics
from core import ids
from core.errors import SERVER_ERROR, Problem

log = structlog.get_logger()

_API_VERSION = "2020-10-01"  # what OpenAI's own servers send
_UNEXPECTED: Final = Problem(
    status=500,
    message="The server failed to answer this request. Its log has the reason, under the request id.",
    type=SERVER_ERROR,
)


class ResponseHeaders:
    """Adds `x-request-id`, the processing time, the api version, `nosniff`, and `state.response_headers` of the request.

    The request id is always new: one sent by a client is not trusted to be unique. It is in the request's `state.request_id`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = ids.new_id(ids.REQUEST)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - began)))
                headers["openai-version"] = _API_VERSION
                headers["x-content-type-options"] = "nosniff"
                for name, value in scope["state"].get("response_headers", {}).items():
                    headers[name] = value
                route = getattr(scope.get("route"), "path", "unknown")
                self._metrics.requests.labels(route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, send_with_headers)


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
