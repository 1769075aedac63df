"""Bytes on a socket, for requests that no HTTP client sends."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """The response up to the close, or up to its length; `status` is 0 without a response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> dict[str, Any]:
        """Return the content of the error envelope."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


def connect(address: tuple[str, int], timeout_seconds: float = 20) -> socket.socket:
    """Return a connection with a time-out."""
    return socket.create_connection(address, timeout_seconds)


def exchange(address: tuple[str, int], *pieces: bytes, more: Iterable[bytes] = ()) -> Answer:
    """Send everything that the server accepts; then read its response."""
    with connect(address) as connection:
        try:
            for piece in (*pieces, *more):
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has refused already
        return read_answer(connection)


def read_answer(connection: socket.socket) -> Answer:
    """Read one response with a Content-Length, or everything until the close."""
    data = b""
    try:
        while b"\r\n\r\n" not in data and (more := connection.recv(65536)):
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        status, headers = parse_head(head)
        while len(body) < int(headers.get("content-length", "0")) and (more := connection.recv(65536)):
            body += more
    except ConnectionResetError:
        head, _, body = data.partition(b"\r\n\r\n")
        status, headers = parse_head(head)
    return Answer(status, headers, body)


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return the status, and the headers with names in lower case."""
    first, *rest = head.decode("latin-1").split("\r\n")
    if not first:
        return 0, {}
    pairs = (line.partition(":") for line in rest)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


def request(method: str, path: str, *headers: str, body: bytes = b"", length: bool = True) -> bytes:
    """Return a request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.append("Host: localhost")
    if length and body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
