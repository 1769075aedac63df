"""What clients are told when this process was told to stop: nobody's connection just ends.

First, answers have some time to come to their end by themselves. Then streams end with an error that says where they go on, and
requests that wait get a 503. What is left when all of the time is over gets one too.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import problem_response
from api.services.waiters import Waiters
from core.errors import unavailable

SHUTTING_DOWN: Final = unavailable(
    "This server was told to stop. Send the request again; a stream goes on where events have ids, "
    "and that of a chat at /v1/jobs/{id}/events."
)
_LAST_SECONDS: Final = 2.0
_LAST_PART: Final = 0.2


async def end_waiters(waiters: Waiters, shutting_down: asyncio.Event, drain_seconds: float) -> None:
    """Set the event at once, and end every wait when only the last seconds of `drain_seconds` are left."""
    shutting_down.set()
    await asyncio.sleep(drain_seconds - min(_LAST_SECONDS, drain_seconds * _LAST_PART))
    waiters.end_all(SHUTTING_DOWN.problem)


class ShutdownResponses:
    """Requests that are cut off by the end of the process, before anything was answered, get their 503."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        is_answered = False

        async def sending(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            if is_answered or scope["type"] != "http" or not scope["app"].state.shutting_down.is_set():
                raise
            await problem_response(SHUTTING_DOWN.problem)(scope, receive, send)
