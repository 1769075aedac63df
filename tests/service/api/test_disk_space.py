"""A disk that is nearly full, and what is left of an upload then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx2
from sqlalchemy import Engine

from api.app import create_app
from core.settings import Settings
from tests.support.check import check_problem

NO_ROOM = 1 << 62


def ask(settings: Settings, send: Callable[[httpx2.AsyncClient], Awaitable[httpx2.Response]]) -> httpx2.Response:
    """One request to an app of these settings, in this process."""

    async def run() -> httpx2.Response:
        app = create_app(settings)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http,
        ):
            return await send(http)

    return asyncio.run(run())


def test_a_file_there_is_no_room_for_is_refused_before_it_is_read(settings: Settings, migrated: Engine) -> None:
    is_read = False

    async def body():
        nonlocal is_read
        is_read = True
        yield b"--x"

    full = settings.model_copy(update={"free_disk_bytes": NO_ROOM})
    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused = ask(full, lambda http: http.post("/v1/files", content=body(), headers=headers))
    check_problem(refused, 507, "disk_full")
    assert refused.headers["x-should-retry"] == "false"
    assert not is_read


def test_an_upload_in_parts_there_is_no_room_for_is_refused_when_announced(
    settings: Settings, migrated: Engine
) -> None:
    full = settings.model_copy(update={"free_disk_bytes": NO_ROOM})
    body = {"bytes": 10, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}
    check_problem(ask(full, lambda http: http.post("/v1/uploads", json=body)), 507, "disk_full")


def test_reading_goes_on_while_there_is_no_room(settings: Settings, migrated: Engine) -> None:
    full = settings.model_copy(update={"free_disk_bytes": NO_ROOM})
    assert ask(full, lambda http: http.get("/v1/files")).status_code == 200
