"""Middleware: the access log, HEAD, and an exception that no handler expects with the headers and counters of its response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from sqlalchemy.exc import ProgrammingError

from api.http.errors import install_error_handlers
from api.http.event_stream import EventStream
from api.http.request_log import note_ids
from api.middleware import AccessLog, HeadAsGet, ResponseHeaders, UnexpectedErrors
from api.services.key_ring import Caller
from api.services.metrics import Metrics
from core import ids
from tests.support.check import check_problem

JOB = ids.new_id(ids.CHAT)


def app_of(metrics: Metrics) -> FastAPI:
    app = FastAPI()
    app.add_middleware(HeadAsGet)
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(ResponseHeaders, metrics=metrics)
    app.add_middleware(AccessLog)
    install_error_handlers(app)

    @app.get("/mistake")
    async def mistake() -> None:
        raise ValueError("a mistake")

    @app.get("/database")
    async def database() -> None:
        raise ProgrammingError("SELECT wrong", None, Exception("no such column"))

    @app.get("/plain/{name}")
    async def plain(request: Request, name: str) -> PlainTextResponse:
        request.state.caller = Caller(tenant="acme", key_id="key_1")
        note_ids(job=JOB, file="a private text")
        structlog.get_logger().warning("inside")
        return PlainTextResponse("hello", headers={"x-name": name[:1]})

    @app.get("/endless")
    async def endless() -> EventStream:
        async def events() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b": ping\n"
                    await asyncio.sleep(0)
            finally:
                app.state.ended = True

        return EventStream(events())

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            raise ValueError("a mistake")

        return StreamingResponse(pieces())

    return app


@pytest.mark.parametrize("path", ["/mistake", "/database"])
async def test_an_unexpected_error_is_counted_and_logged_under_the_id_of_its_response(path: str) -> None:
    metrics = Metrics()
    transport = httpx2.ASGITransport(app_of(metrics))
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            response = await http.get(path)
    check_problem(response, 500, None)
    entry, access = logs
    assert (access["event"], access["status"]) == ("request", 500)
    assert (entry["event"], entry["route"]) == ("request_failed", path)
    assert entry["request_id"] == response.headers["x-request-id"]
    assert f'millrace_http_requests_total{{route="{path}",status="500"}} 1.0' in metrics.text().decode()


async def test_an_unexpected_error_inside_a_stream_is_logged_and_cuts_it_off() -> None:
    transport = httpx2.ASGITransport(app_of(Metrics()))
    with structlog.testing.capture_logs() as logs:
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            with pytest.raises(ValueError, match="a mistake"):
                await http.get("/stream")
    assert [entry["event"] for entry in logs] == ["request_failed", "request"]
    assert logs[1]["is_cut_off"]


async def ask(app: FastAPI, method: str, path: str, **headers: str) -> tuple[httpx2.Response, list[Any]]:
    """Send a request; return the response and the log lines with the fields bound to the request."""
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http:
            response = await http.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    return response, logs


async def test_a_request_is_one_line_of_the_log_and_its_id_is_in_all_of_them() -> None:
    response, (inside, access) = await ask(app_of(Metrics()), "GET", "/plain/a%0ab?secret=1", x_request_id="order-7/2")
    assert response.headers["x-request-id"] == "order-7/2"
    assert (inside["event"], inside["request_id"]) == ("inside", "order-7/2")
    assert access.pop("ms") >= 0
    assert access == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "path": "/plain/a%0ab",
        "status": 200,
        "bytes": 5,
        "key": "key_1",
        "tenant": "acme",
        "job": JOB,
        "request_id": "order-7/2",
    }


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "a\tb", "<b>", '"', "-x"])
async def test_an_id_that_could_harm_a_log_is_replaced(given: str) -> None:
    response, _ = await ask(app_of(Metrics()), "GET", "/plain/a", x_request_id=given)
    assert response.headers["x-request-id"].startswith("req_")


async def test_the_other_name_of_a_clients_id_counts_too() -> None:
    response, _ = await ask(app_of(Metrics()), "GET", "/plain/a", x_client_request_id="mine")
    assert response.headers["x-request-id"] == "mine"


async def test_head_is_get_without_its_body_and_ends_a_stream() -> None:
    app, metrics = FastAPI(), Metrics()
    app = app_of(metrics)
    head, _ = await ask(app, "HEAD", "/plain/a")
    got, _ = await ask(app, "GET", "/plain/a")
    assert (head.status_code, head.content, got.content) == (200, b"", b"hello")
    assert head.headers["content-length"] == "5"
    stream, (access,) = await ask(app, "HEAD", "/endless")
    assert (stream.status_code, stream.content) == (200, b"")
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert app.state.ended
    assert (access["method"], access["bytes"]) == ("HEAD", 0)
    assert 'millrace_http_requests_total{route="/endless",status="200"} 1.0' in metrics.text().decode()
