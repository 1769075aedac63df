"""Requests that shutdown cancels before they were answered get a 503."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from api.live.shutdown import ShutdownResponses


async def endless(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.Event().wait()


async def cut_off(path: str, *, is_shutting_down: bool) -> list[dict[str, Any]]:
    """Cancel a request and return the messages it was sent."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    shutting_down = asyncio.Event()
    if is_shutting_down:
        shutting_down.set()
    app = SimpleNamespace(state=SimpleNamespace(shutting_down=shutting_down))
    scope: Any = {"type": "http", "path": path, "app": app}
    task = asyncio.create_task(ShutdownResponses(endless)(scope, asyncio.Event().wait, send))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    await task
    return sent


async def test_a_request_that_waits_until_the_process_ends_gets_a_503() -> None:
    head, body = await cut_off("/v1/batches/validate", is_shutting_down=True)
    assert head["status"] == 503
    assert int(dict(head["headers"])[b"retry-after"]) > 0
    assert json.loads(body["body"])["error"]["code"] == "service_unavailable"


@pytest.mark.parametrize(("path", "is_shutting_down"), [("/stream", True), ("/v1/batches/validate", False)])
async def test_a_started_response_or_another_cancellation_gets_no_503(path: str, is_shutting_down: bool) -> None:
    with pytest.raises(asyncio.CancelledError):
        await cut_off(path, is_shutting_down=is_shutting_down)
