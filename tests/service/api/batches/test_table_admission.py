"""Limits of mapped batches: lines, room on the disk, quotas, and the models of a key."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select

from core.files.open_store import open_file_store
from core.settings import Settings
from db import keys
from db.tables import Batch, File
from tests.service.api.conftest import MakeKey
from tests.support.check import check_problem
from tests.support.inside import inside
from tests.support.stored import names_in
from workers.context import Database

MAP = "/v1/batches/map"
CONTENT = b"text\n" + b"".join(b"row %d\n" % number for number in range(3))


async def send(http: httpx2.AsyncClient, url: str = MAP, **headers: str) -> httpx2.Response:
    mapping = {"mapping": json.dumps({"model": "fake", "prompt": "{text}"})}
    return await http.post(url, files={"file": ("in.csv", CONTENT)}, data=mapping, headers=headers)


def stored(database: Database, settings: Settings) -> tuple[int, int, int]:
    """Numbers of batches, rows of files, and files in the store."""
    with database.begin() as connection:
        rows = [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in (Batch, File)]
    return rows[0], rows[1], len(names_in(open_file_store(settings)))


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"batch_lines": 2}, 400, "invalid_mapping", "mapping.limit"),
        ({"batch_file_bytes": 1024, "file_bytes": 1024, "storage_bytes": 300}, 429, "insufficient_quota", "file"),
        ({"free_disk_bytes": 1 << 62}, 507, "disk_full", None),
    ],
)
async def test_a_map_over_a_limit_leaves_nothing(
    settings: Settings, database: Database, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    limited = settings.model_copy(update=change)
    async with inside(limited) as http:
        check_problem(await send(http), status, code, param)
        assert stored(database, limited) == (0, 0, 0)
        if "free_disk_bytes" not in change and "batch_lines" not in change:
            assert (await send(http, f"{MAP}/preview")).status_code == 200, "it stores nothing"


async def test_a_tenant_with_its_open_batches_keeps_no_file_of_another(
    settings: Settings, database: Database, keys_made: MakeKey
) -> None:
    key = {"authorization": f"Bearer {keys_made('busy')}"}
    with database.begin() as connection:
        connection.execute(keys.set_caps("busy", open_batches=1, queued_lines=None, storage_bytes=None)).one()
    async with inside(settings) as http:
        assert (await send(http, **key)).status_code == 200
        before = stored(database, settings)
        check_problem(await send(http, **key), 429, "rate_limit_exceeded")
        assert stored(database, settings) == before == (1, 2, 2)
