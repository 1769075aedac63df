"""Uploads to a disk that is nearly full."""

from __future__ import annotations

from sqlalchemy import Engine

from core.settings import Settings
from tests.support.check import check_problem
from tests.support.inside import inside

NO_ROOM = 1 << 62


async def test_a_file_there_is_no_room_for_is_refused_before_it_is_read(settings: Settings, migrated: Engine) -> None:
    is_read = False

    async def body():
        nonlocal is_read
        is_read = True
        yield b"--x"

    full = settings.model_copy(update={"free_disk_bytes": NO_ROOM})
    headers = {"content-type": "multipart/form-data; boundary=x"}
    async with inside(full) as http:
        refused = await http.post("/v1/files", content=body(), headers=headers)
    check_problem(refused, 507, "disk_full")
    assert refused.headers["x-should-retry"] == "false"
    assert not is_read


async def test_an_upload_in_parts_there_is_no_room_for_is_refused_when_announced(
    settings: Settings, migrated: Engine
) -> None:
    full = settings.model_copy(update={"free_disk_bytes": NO_ROOM})
    body = {"bytes": 10, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}
    async with inside(full) as http:
        check_problem(await http.post("/v1/uploads", json=body), 507, "disk_full")


async def test_reading_goes_on_while_there_is_no_room(settings: Settings, migrated: Engine) -> None:
    full = settings.model_copy(update={"free_disk_bytes": NO_ROOM})
    async with inside(full) as http:
        assert (await http.get("/v1/files")).status_code == 200
