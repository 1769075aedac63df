"""Limits of a connection: the time to send a request, the size of its head, the time to read its response, and their number.

Uvicorn has no such limits: it waits without end for the rest of a request and for its response to be read, and keeps all of its
headers. A few thousand such connections would leave no room for other clients.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from asyncio.events import TimerHandle
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.http.errors import problem_response
from api.http.open_files import room_for_connections
from core.errors import ApiError, Problem, unavailable

log = structlog.get_logger()

MAX_HEAD_BYTES: Final = 256 << 10
_SLOWEST_BYTES_PER_SECOND: Final = 1024
_RESET: Final = struct.pack("ii", 1, 0)
_TOO_SLOW: Final = Problem(
    status=408, message="The request body did not come in time. Send it again.", code="request_timeout"
)
_NO_HTTP: Final = Problem(status=400, message="This is not an HTTP request.", code="invalid_http")
_TOO_MUCH_HEAD: Final = Problem(
    status=431,
    message=f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes.",
    code="request_headers_too_large",
)


class BodyTimeout:
    """Responds 408 to a body that pauses for `pause_seconds`, or arrives at less than 1 KiB per second.

    Only time spent waiting counts. The first `pause_seconds` are free, so that a small body may arrive late.
    """

    def __init__(self, app: ASGIApp, pause_seconds: float) -> None:
        self._app = app
        self._pause_seconds = pause_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Limit the wait for the body; later waits, for the disconnect of the client, are not limited."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left, is_whole = self._pause_seconds, False

        async def receive_in_time() -> Message:
            nonlocal left, is_whole
            if is_whole:
                return await receive()
            began = time.monotonic()
            try:
                async with asyncio.timeout(min(left, self._pause_seconds)):
                    message = await receive()
            except TimeoutError:
                raise ApiError(_TOO_SLOW, {"connection": "close"}) from None
            left -= time.monotonic() - began
            left += len(message.get("body", b"")) / _SLOWEST_BYTES_PER_SECOND
            is_whole = not message.get("more_body", False)
            return message

        await self._app(scope, receive_in_time, send)


async def _refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of a connection for which no file is left."""
    error = unavailable("The server has as many connections as it can hold. Nothing was done; try again shortly.")
    await problem_response(error.problem, {"connection": "close"})(scope, receive, send)


def hardened_protocol(head_seconds: float, unread_seconds: float) -> type[HttpToolsProtocol]:
    """A protocol for uvicorn that closes connections whose request head is not complete within `head_seconds` or too large, and
    those that read less than 1 KiB per second of a response for `unread_seconds`."""

    class Hardened(_WriteTimeout, _HeaderTimeout):
        seconds = head_seconds
        pause_seconds = unread_seconds

    return Hardened


def set_tcp_user_timeout(listener: socket.socket, unread_seconds: float) -> None:
    """Close connections of this listener whose client acknowledges no data for twice this long."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * unread_seconds))


class _HeaderTimeout(HttpToolsProtocol):
    """Limits time and size of a head: from the connection, or the first byte of a further request, to its empty line."""

    seconds: float
    _deadline: TimerHandle | None = None
    _num_head_bytes = 0
    _body_deadline: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._end_body()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is not None:
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(_TOO_MUCH_HEAD)
                return
            self._num_head_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._end_head()
        if len(self.connections) > room_for_connections():
            self.app = _refuse_connection
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0" and self.cycle is not None:
            _end_by_close(self.cycle)

    def on_response_complete(self) -> None:
        """Give a body that was answered before it was read `seconds` to end."""
        super().on_response_complete()
        if self.cycle.more_body and self._body_deadline is None:
            self._body_deadline = self.loop.call_later(self.seconds, self.transport.close)

    def on_message_complete(self) -> None:
        self._end_body()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the server's signature
        self._refuse(_NO_HTTP)

    def _begin_head(self) -> None:
        if self._deadline is None:
            self._num_head_bytes = 0
            self._deadline = self.loop.call_later(self.seconds, self._close_late)

    def _end_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end_body(self) -> None:
        if self._body_deadline is not None:
            self._body_deadline.cancel()
            self._body_deadline = None

    def _close_late(self) -> None:
        """Close the connection, after the response to the previous request if one is being sent."""
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._deadline = self.loop.call_later(self.seconds, self._close_late)
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Send the problem and close: there is no request that the application could answer."""
        self._end_head()
        if self.transport.is_closing():
            return
        content = json.dumps(problem.envelope()).encode()
        headers: dict[str, Any] = {"content-type": "application/json", "content-length": len(content)}
        lines = [f"{name}: {value}\r\n" for name, value in {**headers, "connection": "close"}.items()]
        self.transport.write(STATUS_LINE[problem.status] + "".join(lines).encode() + b"\r\n" + content)
        self.transport.close()


def _end_by_close(cycle: RequestResponseCycle) -> None:
    """Send a response of unknown length without chunks, which HTTP/1.0 does not have: it ends with the connection."""
    send, has_length = cycle.send, True

    async def send_unchunked(message: ASGISendEvent) -> None:
        nonlocal has_length
        if message["type"] == "http.response.start":
            has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            cycle.chunked_encoding = None if has_length else False
        elif message["type"] == "http.response.body" and not has_length:
            cycle.expected_content_length = len(message.get("body", b""))  # this piece is as long as it may be
        await send(message)

    cycle.send = send_unchunked  # type: ignore[method-assign]


class _WriteTimeout(HttpToolsProtocol):
    """Limits the time to read a response: while the write buffer is not nearly empty again, it must shrink steadily."""

    pause_seconds: float
    _unread_deadline: TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._end_watch()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_watch()
        super().connection_lost(exc)

    def _watch(self, unread: int) -> None:
        self._end_watch()
        self._unread_deadline = self.loop.call_later(self.pause_seconds, self._check, unread)

    def _check(self, unread: int) -> None:
        """Reset the connection unless the buffer has shrunk; nothing is added to a full one."""
        left = self.transport.get_write_buffer_size()
        if unread - left >= _SLOWEST_BYTES_PER_SECOND * self.pause_seconds:
            self._watch(left)
            return
        log.warning("client_does_not_read", unread_bytes=left)
        # after a close the kernel would offer the unread bytes for minutes more
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _end_watch(self) -> None:
        if self._unread_deadline is not None:
            self._unread_deadline.cancel()
            self._unread_deadline = None
