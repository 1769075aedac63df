"""Quotas of a tenant: bytes of its files, and of parts of pending uploads."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from core.files.open_store import open_file_store
from core.settings import Settings
from db import keys
from tests.support.check import check_problem
from tests.support.guarded import Guarded
from tests.support.inside import inside
from tests.support.stored import names_in
from workers.context import Database

TEXT: dict[str, Any] = {"mime_type": "text/plain", "purpose": "user_data"}


def cap(guarded: Guarded, tenant: str, storage_bytes: int) -> OpenAI:
    """The client of a tenant with this quota."""
    key = guarded.key(tenant)
    with guarded.database.begin() as connection:
        caps = keys.set_caps(tenant, open_batches=None, queued_lines=None, storage_bytes=storage_bytes)
        connection.execute(caps).one()
    return key.client


def keep(client: OpenAI, size: int) -> str:
    return client.files.create(file=("a.txt", b"x" * size), purpose="user_data").id


def announce(client: OpenAI, size: int) -> str:
    return client.uploads.create(bytes=size, filename="b.txt", **TEXT).id


def test_a_file_over_the_tenants_quota_is_refused_until_another_is_deleted(guarded: Guarded) -> None:
    client = cap(guarded, "hoarder", 1000)
    kept = keep(client, 900)
    with pytest.raises(openai.RateLimitError) as caught:
        keep(client, 101)
    assert (caught.value.code, caught.value.type, caught.value.param) == (
        "insufficient_quota",
        "insufficient_quota",
        "file",
    )
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "limit 1000 bytes, used 900, requested 101" in str(caught.value)
    assert keep(client, 100), "all of it may be used"
    assert keep(guarded.key("frugal").client, 2000), "others are not touched by it"
    client.files.delete(kept)
    assert keep(client, 900)


def test_an_upload_in_parts_takes_its_room_when_it_is_announced_and_gives_it_back_when_cancelled(
    guarded: Guarded,
) -> None:
    client = cap(guarded, "slicer", 1000)
    upload = announce(client, 600)
    for refused in (lambda: announce(client, 401), lambda: keep(client, 401)):
        with pytest.raises(openai.RateLimitError) as caught:
            refused()
        assert caught.value.code == "insufficient_quota"
    part = client.uploads.parts.create(upload, data=b"x" * 600).id
    assert client.uploads.complete(upload, part_ids=[part]).status == "completed"
    second = announce(client, 400)
    client.uploads.cancel(second)
    assert keep(client, 400)


async def test_the_settings_quota_is_that_of_tenants_without_one(settings: Settings, database: Database) -> None:
    async with inside(settings.model_copy(update={"storage_bytes": 1000})) as http:
        form: dict[str, Any] = {"data": {"purpose": "user_data"}, "files": {"file": ("a.txt", b"x" * 600)}}
        assert (await http.post("/v1/files", **form)).status_code == 200
        error = check_problem(await http.post("/v1/files", **form), 429, "insufficient_quota", "file")
        assert error["type"] == "insufficient_quota"


async def test_a_file_that_is_sent_again_under_its_key_needs_no_room_of_its_own(
    settings: Settings, database: Database
) -> None:
    async with inside(settings.model_copy(update={"storage_bytes": 1000})) as http:
        sent: dict[str, Any] = {
            "data": {"purpose": "user_data"},
            "files": {"file": ("a.txt", b"x" * 600)},
            "headers": {"idempotency-key": "once"},
        }
        first, again = await http.post("/v1/files", **sent), await http.post("/v1/files", **sent)
        assert first.status_code == again.status_code == 200
        assert first.json() == again.json()


async def test_parts_that_wait_are_limited_over_all_uploads_until_one_is_completed_or_cancelled(
    settings: Settings, database: Database
) -> None:
    async def begin(http: httpx2.AsyncClient) -> str:
        made = await http.post("/v1/uploads", json={"bytes": 1000, "filename": "b.txt", **TEXT})
        return str(made.json()["id"])

    async def send(http: httpx2.AsyncClient, upload_id: str, size: int) -> httpx2.Response:
        return await http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"x" * size})

    async with inside(settings.model_copy(update={"pending_upload_bytes": 2048})) as http:
        one, two = await begin(http), await begin(http)
        part = (await send(http, one, 1000)).json()["id"]
        assert (await send(http, two, 900)).status_code == 200
        refused = await send(http, two, 149)
        error = check_problem(refused, 429, "rate_limit_exceeded")
        assert error["type"] == "uploads"
        assert "limit 2048, used 1900, requested 149" in error["message"]
        assert refused.headers["x-should-retry"] == "false"
        assert (await send(http, two, 148)).status_code == 200
        assert (await http.post(f"/v1/uploads/{one}/complete", json={"part_ids": [part]})).status_code == 200
        assert (await send(http, two, 1000)).status_code == 200
        assert (await http.post(f"/v1/uploads/{two}/cancel")).status_code == 200
        assert (await send(http, await begin(http), 2048)).status_code == 200


async def test_concurrent_requests_never_exceed_the_quota(settings: Settings, database: Database) -> None:
    async with inside(settings.model_copy(update={"pending_upload_bytes": 2048, "storage_bytes": 2500})) as http:
        made = await http.post("/v1/uploads", json={"bytes": 1000, "filename": "b.txt", **TEXT})
        url = f"/v1/uploads/{made.json()['id']}/parts"
        parts = [http.post(url, files={"data": b"x" * 500}) for _ in range(8)]
        statuses = [answer.status_code for answer in await asyncio.gather(*parts)]
        assert sorted(statuses) == [200] * 4 + [429] * 4
        form: dict[str, Any] = {"data": {"purpose": "user_data"}, "files": {"file": ("a.txt", b"x" * 500)}}
        kept = [
            answer.status_code for answer in await asyncio.gather(*(http.post("/v1/files", **form) for _ in range(8)))
        ]
        assert sorted(kept) == [200] * 3 + [429] * 5, "the upload that was announced has its room already"


async def test_a_refused_part_leaves_no_bytes_behind(settings: Settings, database: Database) -> None:
    async with inside(settings.model_copy(update={"pending_upload_bytes": 1024})) as http:
        made = await http.post("/v1/uploads", json={"bytes": 1000, "filename": "b.txt", **TEXT})
        url = f"/v1/uploads/{made.json()['id']}/parts"
        assert (await http.post(url, files={"data": b"x" * 1025})).status_code == 429
        assert not names_in(open_file_store(settings))


async def test_a_part_whose_length_is_too_large_is_refused_before_it_is_read(
    settings: Settings, database: Database
) -> None:
    is_read = False

    async def body():
        nonlocal is_read
        is_read = True
        yield b"--x"

    async with inside(settings.model_copy(update={"pending_upload_bytes": 1024})) as http:
        made = await http.post("/v1/uploads", json={"bytes": 1000, "filename": "b.txt", **TEXT})
        headers = {"content-type": "multipart/form-data; boundary=x", "content-length": "1000000"}
        url = f"/v1/uploads/{made.json()['id']}/parts"
        check_problem(await http.post(url, content=body(), headers=headers), 429, "rate_limit_exceeded")
        assert not is_read
