"""Clients that send slowly or without end, do not read, or are too many: how long a request may take to come in, how large its
head may be, how long an answer may take to go out.

Knows sockets and seconds; nothing of routes. The server underneath waits for ever for the rest of a request, keeps all of its
headers, and waits for ever for its answer to be read: a few thousand such connections would take the place of everybody else.
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
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

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
    """Ends the wait for a body that pauses for `pause_seconds`, or that trickles: 408.

    Only time spent waiting counts. The first `pause_seconds` are free, so that a small body may come late.
    """

    def __init__(self, app: ASGIApp, pause_seconds: float) -> None:
        self._app = app
        self._pause_seconds = pause_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; once its body is here, waiting is for the client to leave, and as long as it takes."""
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
    """Instead of the application, for one connection more than there are files for."""
    error = unavailable("The server has as many connections as it can hold. Nothing was done; try again shortly.")
    await problem_response(error.problem, {"connection": "close"})(scope, receive, send)


def hardened_protocol(head_seconds: float, unread_seconds: float) -> type[HttpToolsProtocol]:
    """The server's HTTP for connections whose request heads must be there within this time, and of a bounded size; and which
    are dropped when they take less than a trickle of an answer in `unread_seconds`."""

    class Bounded(_WriteTimeout, _HeaderTimeout):
        seconds = head_seconds
        pause_seconds = unread_seconds

    return Bounded


def set_tcp_user_timeout(listener: socket.socket, unread_seconds: float) -> None:
    """Connections of this listener end when their client acknowledges nothing for twice this long, however little waits."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * unread_seconds))


class _HeaderTimeout(HttpToolsProtocol):
    """A head begins with the connection, or with the first byte of a further request; it ends with its empty line."""

    seconds: float
    _deadline: TimerHandle | None = None
    _num_head_bytes = 0
    _rest_deadline: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._end_rest()
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

    def on_response_complete(self) -> None:
        """A body that was answered before it was read has some time to end."""
        super().on_response_complete()
        if self.cycle.more_body and self._rest_deadline is None:
            self._rest_deadline = self.loop.call_later(self.seconds, self.transport.close)

    def on_message_complete(self) -> None:
        self._end_rest()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the server's signature
        self._refuse(_NO_HTTP)

    def _begin_head(self) -> None:
        if self._deadline is None:
            self._num_head_bytes = 0
            self._deadline = self.loop.call_later(self.seconds, self._give_up)

    def _end_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end_rest(self) -> None:
        if self._rest_deadline is not None:
            self._rest_deadline.cancel()
            self._rest_deadline = None

    def _give_up(self) -> None:
        """What is answered still, of the request before, is not cut off."""
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._deadline = self.loop.call_later(self.seconds, self._give_up)
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Say so and close: there is no request that an application could answer."""
        self._end_head()
        if self.transport.is_closing():
            return
        content = json.dumps(problem.envelope()).encode()
        headers: dict[str, Any] = {"content-type": "application/json", "content-length": len(content)}
        lines = [f"{name}: {value}\r\n" for name, value in {**headers, "connection": "close"}.items()]
        self.transport.write(STATUS_LINE[problem.status] + "".join(lines).encode() + b"\r\n" + content)
        self.transport.close()


class _WriteTimeout(HttpToolsProtocol):
    """From when the buffer of what is to be sent is full until it is nearly empty, it must get smaller all the time."""

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
        self._unread_deadline = self.loop.call_later(self.pause_seconds, self._look, unread)

    def _look(self, unread: int) -> None:
        """While the buffer is full, nothing is added to it."""
        left = self.transport.get_write_buffer_size()
        if unread - left >= _SLOWEST_BYTES_PER_SECOND * self.pause_seconds:
            self._watch(left)
            return
        log.warning("client_does_not_read", unread_bytes=left)
        # a close would leave what is unread to the kernel, which offers it for minutes more
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _end_watch(self) -> None:
        if self._unread_deadline is not None:
            self._unread_deadline.cancel()
            self._unread_deadline = None
