"""Graceful shutdown: end streams and waiting requests with an error instead of a closed connection.

Responses first have some time to complete. Then streams end with an error that names where to resume them, and waiting requests
get a 503. Requests that are still unanswered when the time is over get a 503 too.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import problem_response
from api.services.waiters import Waiters
from core.errors import unavailable

SHUTTING_DOWN: Final = unavailable(
    "This server is shutting down. Send the request again; a stream with event ids can be resumed, "
    "that of a chat at /v1/jobs/{id}/events."
)
_LAST_SECONDS: Final = 2.0
_LAST_SHARE: Final = 0.2


async def end_waiters(waiters: Waiters, shutting_down: asyncio.Event, drain_seconds: float) -> None:
    """Set the event at once, and end every wait when only the last seconds of `drain_seconds` are left."""
    shutting_down.set()
    await asyncio.sleep(drain_seconds - min(_LAST_SECONDS, drain_seconds * _LAST_SHARE))
    waiters.end_all(SHUTTING_DOWN.problem)


class ShutdownResponses:
    """Middleware: a request that shutdown cancels before its response began gets a 503."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_answered = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if is_answered or scope["type"] != "http" or not scope["app"].state.shutting_down.is_set():
                raise
            await problem_response(SHUTTING_DOWN.problem)(scope, receive, send)
