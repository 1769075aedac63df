"""Streams and waits that end as soon as the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Message, Receive, Scope, Send

_Result = TypeVar("_Result")

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def disconnected(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return


async def unless_disconnected(
    request: Request,
    work: Coroutine[Any, Any, _Result],  # Any: what a coroutine sends and yields
) -> _Result | None:
    """Return the result of `work`, or None when the client disconnects first; the body must have been read."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()


class ByteStream(Response):
    """Sends what `chunks` yields. When the client leaves, the iterator is closed, so its `finally` runs.

    An error of the iterator ends the connection in the middle of the body, so that the client does not take it for whole.
    """

    def __init__(self, chunks: AsyncIterator[bytes], headers: Mapping[str, str], media_type: str) -> None:
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One stream."""
        del scope  # the head is fixed
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await task

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for data in self._chunks:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            closing = getattr(self._chunks, "aclose", None)
            if closing is not None:
                await closing()


class EventStream(ByteStream):
    """Server-sent events."""

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, _HEADERS, "text/event-stream")
