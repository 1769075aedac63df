"""An HTTP server on loopback that answers as OpenAI's API does, or fails as the next fault of its script says.

It works on plain sockets, so that it can reset a connection or end it in the middle of an answer.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.support.upstream import DONE, chat_answer, chunk


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as received; `body` is its JSON, None without one."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass(slots=True)
class Peer:
    """The other end of one request: sends an answer in parts, or breaks the connection."""

    request: HttpRequest
    connection: socket.socket
    released: threading.Event
    is_kept: bool = True

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.begin(status, **{"content_type": "application/json", **headers, "content_length": str(len(body))})
        self.connection.sendall(body)

    def begin(self, status: int, **headers: str) -> None:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.connection.sendall("\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode())

    def stream(self, *pieces: bytes) -> None:
        """Begin a stream that ends with the connection, and send its first pieces."""
        self.begin(200, content_type="text/event-stream", connection="close")
        for piece in pieces:
            self.connection.sendall(piece)
        self.is_kept = False

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.is_kept = False

    def wait(self) -> None:
        """Wait until the test calls `release`."""
        self.released.wait(60)


Fault = Callable[[Peer], None]


def answer(peer: Peer) -> None:
    """Answer as a server without faults: with the text of the last message, in two chunks if it is to be streamed."""
    text = peer.request.body["messages"][-1]["content"]
    if peer.request.body.get("stream"):
        usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
        end = b"data: " + json.dumps(usage).encode() + b"\n\n"
        peer.stream(chunk(text[:2]), chunk(text[2:]), chunk(finish="stop"), end, DONE)
    else:
        peer.send(200, chat_answer(text))


def status(number: int, message: str = "no", **headers: str) -> Fault:
    return lambda peer: peer.send(number, json.dumps({"error": {"message": message}}).encode(), **headers)


def reset(peer: Peer) -> None:
    peer.reset()


def half(peer: Peer) -> None:
    """Half of an answer of which the length is known."""
    peer.begin(200, content_type="application/json", content_length="1000")
    peer.connection.sendall(b'{"choices": [{"index": 0, "message": {"content": "ha')
    peer.is_kept = False


def half_stream(peer: Peer) -> None:
    peer.stream(chunk("ha"))


def wrong(peer: Peer) -> None:
    peer.send(200, b"<html>welcome</html>")


def held(peer: Peer) -> None:
    """Answer once the test calls `release`."""
    peer.wait()
    answer(peer)


@dataclass(slots=True)
class FaultServer:
    """Plays the faults in turn for requests with a body, then answers all. `received` has those requests."""

    faults: list[Fault] = field(default_factory=list)
    received: list[HttpRequest] = field(default_factory=list)
    models: Fault = field(default=lambda peer: peer.send(200, b'{"data": []}', server="faulty/1"))
    port: int = 0
    num_connections: int = 0
    tls: ssl.SSLContext | None = None
    _listener: socket.socket = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def release(self) -> None:
        self._released.set()

    def close(self) -> None:
        self._released.set()
        with suppress(OSError):  # it is closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                while (request := _read(stream)) is not None:
                    peer = Peer(request, connection, self._released)
                    self._next(request)(peer)
                    if not peer.is_kept:
                        return
        except OSError:
            pass  # the client has closed its end

    def _next(self, request: HttpRequest) -> Fault:
        if request.body is None:
            return self.models
        with self._lock:
            self.received.append(request)
            return self.faults.pop(0) if self.faults else answer


def _read(stream: Any) -> HttpRequest | None:
    line = stream.readline().decode()
    if not line:
        return None
    method, path, _ = line.split()
    headers = {}
    while header := stream.readline().decode().strip():
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", 0)))
    return HttpRequest(method, path, headers, json.loads(body) if body else None)


if __name__ == "__main__":  # a server for `command:`: `python -m tests.support.fault_server PORT`
    FaultServer(port=int(sys.argv[1]))
    threading.Event().wait()
