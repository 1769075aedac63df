"""Headers of every answer, and one count of it. Plain ASGI, so streams pass untouched."""

from __future__ import annotations

import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics
from core import ids

_API_VERSION = "2020-10-01"  # what OpenAI's own servers send


class AnswerHeaders:
    """Adds `x-request-id` (always ours: a client's is never a key), the processing time and the api version."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = ids.new_id(ids.REQUEST)
                headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - began)))
                headers["openai-version"] = _API_VERSION
                route = getattr(scope.get("route"), "path", "unknown")
                self._metrics.requests.labels(route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, send_with_headers)
