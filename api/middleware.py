"""ASGI middleware of every response: headers, the request counter, and OpenAI's envelope for a 413 of the framework."""

from __future__ import annotations

import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import TOO_LARGE, problem_response
from api.services.metrics import Metrics
from core import ids

_API_VERSION = "2020-10-01"  # what OpenAI's own servers send


class ResponseHeaders:
    """Adds `x-request-id`, the processing time, the api version, and the headers in the request's `state.response_headers`.

    The request id is always new: one sent by a client is not trusted to be unique.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        scope.setdefault("state", {})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = ids.new_id(ids.REQUEST)
                headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - began)))
                headers["openai-version"] = _API_VERSION
                for name, value in scope["state"].get("response_headers", {}).items():
                    headers[name] = value
                route = getattr(scope.get("route"), "path", "unknown")
                self._metrics.requests.labels(route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, send_with_headers)


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
