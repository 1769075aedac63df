"""Lists of batches: their filters, on rows that no worker touches."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from core.settings import Settings
from core.states import BatchState
from db import batch_control, batches
from db.tables import DEFAULT_TENANT
from tests.service.api.conftest import MakeKey
from tests.support.check import check_problem
from tests.support.inside import inside
from tests.support.rows import make_batch, make_file, make_running_batch
from workers.context import Database


@pytest.fixture
async def http(settings: Settings, database: Database, valkey: object) -> AsyncIterator[httpx2.AsyncClient]:
    async with inside(settings) as http:
        yield http


async def found(http: httpx2.AsyncClient, **query: Any) -> list[str]:
    """The ids of a list, newest first."""
    response = await http.get("/v1/batches", params=query)
    assert response.status_code == 200, response.text
    return [each["id"] for each in response.json()["data"]]


def named(database: Database, file_name: str, metadata: dict[str, str] | None = None) -> str:
    """Insert a batch that waits for prepare, of a file with this name."""
    with database.begin() as connection:
        file_id = make_file(connection)
        connection.execute(text("UPDATE files SET filename = :n WHERE id = :id"), {"n": file_name, "id": file_id})
        batch_id = make_batch(connection, file_id=file_id)
        if metadata is not None:
            batch_control.set_metadata(batch_id, DEFAULT_TENANT, json.dumps(metadata)).fetch_one(connection)
    return batch_id


async def test_a_list_is_filtered_by_any_of_several_statuses(http: httpx2.AsyncClient, database: Database) -> None:
    with database.begin() as connection:
        waiting, ended = make_batch(connection), make_batch(connection)
        running, _ = make_running_batch(connection)
        paused, _ = make_running_batch(connection)
        batch_control.pause(paused, DEFAULT_TENANT).fetch_one(connection)
        closing, _ = make_running_batch(connection)
        batch_control.pause(closing, DEFAULT_TENANT).fetch_one(connection)
        batches.move(closing, BatchState.CANCELLING).fetch_one(connection)
        batches.move(ended, BatchState.FAILED).fetch_one(connection)
    assert await found(http, status="validating") == [waiting]
    assert await found(http, status="failed") == [ended]
    assert await found(http, status="in_progress") == [paused, running]
    assert await found(http, status="paused") == [paused], "a batch that is cancelled takes no lines, paused or not"
    assert await found(http, status=["failed", "paused", "cancelling"]) == [closing, paused, ended]
    assert await found(http, status="expired") == []
    for status in BatchState:
        assert (await http.get("/v1/batches", params={"status": status})).status_code == 200


async def test_a_model_finds_the_batches_with_lines_for_it(http: httpx2.AsyncClient, database: Database) -> None:
    with database.begin() as connection:
        of_one, _ = make_running_batch(connection, model="demo")
        of_two, (_, shard) = make_running_batch(connection, [1, 1], model="demo")
        connection.execute(text("UPDATE batches SET model = 'demo' WHERE id = :id"), {"id": of_one})
        connection.execute(text("UPDATE batches SET model = NULL WHERE id = :id"), {"id": of_two})
        connection.execute(text("UPDATE shards SET model = 'gemma' WHERE id = :id"), {"id": shard})
    assert await found(http, model="demo") == [of_two, of_one]
    assert await found(http, model="gemma") == [of_two]
    assert await found(http, model="dem") == []


async def test_text_finds_ids_names_and_file_names_in_any_case(http: httpx2.AsyncClient, database: Database) -> None:
    tickets = named(database, "Tickets Übung.jsonl")
    nightly = named(database, "in.jsonl", {"name": "Nightly 100%", "note": "tickets"})
    assert await found(http, q="TICKETS") == [tickets], "other metadata does not count"
    assert await found(http, q="übung") == [tickets]
    assert await found(http, q="nightly") == [nightly]
    assert await found(http, q="0%") == [nightly]
    assert await found(http, q="%") == [nightly], "no wildcard"
    assert await found(http, q="_") == [nightly, tickets], "part of their ids alone"
    assert await found(http, q=tickets[8:].upper()) == [tickets]
    assert await found(http, q="") == [nightly, tickets]
    assert await found(http, q="'; DROP TABLE batches; --") == []


async def test_metadata_finds_batches_with_exactly_these_pairs(http: httpx2.AsyncClient, database: Database) -> None:
    one = named(database, "a", {"team": "alpha", "run": "1", "a]b": 'x"'})
    two = named(database, "b", {"team": "alpha", "run": "2"})
    named(database, "c")
    assert await found(http, **{"metadata[team]": "alpha"}) == [two, one]
    assert await found(http, **{"metadata[team]": "alpha", "metadata[run]": "1"}) == [one]
    assert await found(http, **{"metadata[team]": "alph"}) == []
    assert await found(http, **{"metadata[a]b]": 'x"'}) == [one]
    assert await found(http, **{"metadata[team]": "alpha", "status": "failed"}) == []
    batch = (await http.patch(f"/v1/batches/{two}", json={"metadata": {"team": "beta"}})).json()
    assert await found(http, **{"metadata[team]": batch["metadata"]["team"]}) == [two]


async def test_a_file_finds_the_batches_that_read_or_wrote_it(http: httpx2.AsyncClient, database: Database) -> None:
    with database.begin() as connection:
        file_id, other = make_file(connection), make_file(connection)
        reader, again = make_batch(connection, file_id=file_id), make_batch(connection, file_id=file_id)
        writer = make_batch(connection)
        connection.execute(text("UPDATE batches SET error_file_id = :f WHERE id = :id"), {"f": other, "id": writer})
    assert await found(http, file_id=file_id) == [again, reader]
    assert await found(http, file_id=other) == [writer]
    assert await found(http, file_id="file-none") == []


async def test_filters_go_on_from_page_to_page(http: httpx2.AsyncClient, database: Database) -> None:
    made = [named(database, f"{'even' if number % 2 == 0 else 'odd'} {number}.jsonl") for number in range(8)]
    first = (await http.get("/v1/batches", params={"q": "even", "limit": 3})).json()
    assert [each["id"] for each in first["data"]] == [made[6], made[4], made[2]]
    assert first["has_more"] is True
    rest = (await http.get("/v1/batches", params={"q": "even", "limit": 3, "after": first["last_id"]})).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == ([made[0]], False)


async def test_wrong_filters_name_the_parameter(http: httpx2.AsyncClient) -> None:
    for query in (
        "status=pauzed", "status=failed&status=", "status=Completed", "q=%00", "file_id=%00", f"q={'x' * 257}", "model=%00",
        "metadata[a]=%00", "metadata=a", "metadata[]=a", "metadata[a=b", f"metadata[{'k' * 65}]=v",
        "metadata[a]=1&metadata[a]=2", "&".join(["status=failed"] * 101),
    ):  # fmt: skip
        param = query.partition("=")[0].partition("[")[0]
        problem = check_problem(await http.get(f"/v1/batches?{query}"), 400, "invalid_value", param)
        assert param in problem["message"]
    status = await http.get("/v1/batches?status=pauzed")
    assert "'paused'" in status.json()["error"]["message"]


async def test_a_batch_keeps_the_name_of_its_deleted_file(http: httpx2.AsyncClient, database: Database) -> None:
    batch_id = named(database, "tickets.jsonl")
    batch = (await http.get(f"/v1/batches/{batch_id}")).json()
    assert (batch["input_file_name"], batch["api_key_id"]) == ("tickets.jsonl", None)
    with database.begin() as connection:
        connection.execute(text("DELETE FROM files WHERE id = :id"), {"id": batch["input_file_id"]})
    assert (await http.get(f"/v1/batches/{batch_id}")).json()["input_file_name"] == "tickets.jsonl"
    assert await found(http, q="tickets") == [batch_id]


async def test_a_batch_has_the_id_of_the_key_that_created_it(
    http: httpx2.AsyncClient, database: Database, keys_made: MakeKey
) -> None:
    key = {"authorization": f"Bearer {keys_made('owner')}"}
    with database.begin() as connection:
        file_id = make_file(connection)
        connection.execute(text("UPDATE files SET tenant_id = 'owner' WHERE id = :id"), {"id": file_id})
        key_id = connection.execute(text("SELECT id FROM api_keys")).scalar_one()
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = (await http.post("/v1/batches", json=body, headers=key)).json()
    assert (made["api_key_id"], made["input_file_name"]) == (key_id, "in.jsonl")


async def test_filters_find_nothing_of_another_tenant(
    http: httpx2.AsyncClient, database: Database, keys_made: MakeKey
) -> None:
    theirs = named(database, "secret.jsonl", {"name": "secret", "team": "alpha"})
    key = {"authorization": f"Bearer {keys_made('stranger')}"}
    for query in ("", "q=secret", f"q={theirs}", "metadata[team]=alpha", "status=validating", "model=fake"):
        assert (await http.get(f"/v1/batches?{query}", headers=key)).json()["data"] == []
