"""Streams to clients of HTTP/1.0, such as nginx with its default settings: no chunks, and the connection ends the body."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from api.http.connection_limits import hardened_protocol
from api.http.event_stream import EventStream

STREAM = b"data: 1\n\ndata: [DONE]\n\n"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = FastAPI()

    @app.get("/stream")
    async def stream() -> EventStream:
        async def events() -> AsyncIterator[bytes]:
            for line in STREAM.splitlines(keepends=True):
                yield line

        return EventStream(events())

    @app.get("/plain")
    async def plain() -> PlainTextResponse:
        return PlainTextResponse("hello")

    config = uvicorn.Config(app, http=hardened_protocol(5, 5), ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await server.startup([listener])
        yield int(listener.getsockname()[1])
        await server.shutdown([listener])


async def exchange(port: int, path: str, version: str, method: str = "GET") -> tuple[bytes, bytes]:
    """Send a request and read until the server closes; return head and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head.lower(), body


async def test_a_stream_has_chunks_in_1_1_only(port: int) -> None:
    head, body = await exchange(port, "/stream", "1.0")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == STREAM
    head, body = await exchange(port, "/stream", "1.1")
    assert b"transfer-encoding: chunked" in head
    assert body.endswith(b"0\r\n\r\n")


async def test_what_has_a_length_keeps_it(port: int) -> None:
    for version in ("1.0", "1.1"):
        head, body = await exchange(port, "/plain", version)
        assert b"content-length: 5" in head
        assert body == b"hello"
