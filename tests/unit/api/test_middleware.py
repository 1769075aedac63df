"""Middleware: an exception that no handler expects, and the headers and counters of its response."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
import structlog
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import ProgrammingError

from api.http.errors import install_error_handlers
from api.middleware import ResponseHeaders, UnexpectedErrors
from api.services.metrics import Metrics
from tests.support.check import check_problem


def app_of(metrics: Metrics) -> FastAPI:
    app = FastAPI()
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(ResponseHeaders, metrics=metrics)
    install_error_handlers(app)

    @app.get("/mistake")
    async def mistake() -> None:
        raise ValueError("a mistake")

    @app.get("/database")
    async def database() -> None:
        raise ProgrammingError("SELECT wrong", None, Exception("no such column"))

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
    with structlog.testing.capture_logs() as logs:
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            response = await http.get(path)
    check_problem(response, 500, None)
    (entry,) = logs
    assert (entry["event"], entry["route"]) == ("request_failed", path)
    assert entry["request_id"] == response.headers["x-request-id"]
    assert f'millrace_http_requests_total{{route="{path}",status="500"}} 1.0' in metrics.text().decode()


async def test_an_unexpected_error_inside_a_stream_is_logged_and_cuts_it_off() -> None:
    transport = httpx2.ASGITransport(app_of(Metrics()))
    with structlog.testing.capture_logs() as logs:
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            with pytest.raises(ValueError, match="a mistake"):
                await http.get("/stream")
    assert [entry["event"] for entry in logs] == ["request_failed"]
