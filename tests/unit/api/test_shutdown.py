"""The end of a process, as a request sees it that has not been answered by then."""

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


async def cut_off(path: str, *, is_leaving: bool) -> list[dict[str, Any]]:
    """What such a request is sent when it is cancelled."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    leaving = asyncio.Event()
    if is_leaving:
        leaving.set()
    app = SimpleNamespace(state=SimpleNamespace(millrace=SimpleNamespace(leaving=leaving)))
    scope: Any = {"type": "http", "path": path, "app": app}
    task = asyncio.create_task(ShutdownResponses(endless)(scope, asyncio.Event().wait, send))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    await task
    return sent


async def test_a_request_that_waits_until_the_process_ends_gets_a_503() -> None:
    head, body = await cut_off("/v1/batches/validate", is_leaving=True)
    assert head["status"] == 503
    assert int(dict(head["headers"])[b"retry-after"]) > 0
    assert json.loads(body["body"])["error"]["code"] == "service_unavailable"


@pytest.mark.parametrize(("path", "is_leaving"), [("/stream", True), ("/v1/batches/validate", False)])
async def test_what_has_begun_or_is_cancelled_for_another_reason_gets_no_second_answer(
    path: str, is_leaving: bool
) -> None:
    with pytest.raises(asyncio.CancelledError):
        await cut_off(path, is_leaving=is_leaving)
