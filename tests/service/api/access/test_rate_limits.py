"""Rate limits and stream limits on a real Valkey and over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import redis
from sqlalchemy import update

from cli.stack.services import Services
from core.settings import Settings
from db import keys
from db.tables import File
from tests.service.api.conftest import MakeKey
from tests.support.check import check_problem
from tests.support.guarded import Guarded, Key
from tests.support.inside import inside
from tests.support.rates import NOWHERE, check_streams_over_processes, check_ten_thousand_calls, take_all
from tests.support.rows import make_file
from tests.support.stack import batch_lines, start_batch, wait_for, write_lines
from workers.context import Database

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


async def test_valkey_and_a_process_alone_agree(services: Services, valkey: redis.Redis) -> None:
    steps = [(0.25 * (index % 7), 1 + index * 7 % 23) for index in range(60)]
    for here, there in zip(await take_all(NOWHERE, steps), await take_all(services.redis_url, steps), strict=True):
        assert (here.is_taken, here.remaining) == (there.is_taken, there.remaining)
        assert here.reset_seconds == pytest.approx(there.reset_seconds, abs=1e-3)


async def test_of_ten_thousand_calls_at_once_the_limit_is_taken_and_others_are_not_affected(
    services: Services, valkey: redis.Redis
) -> None:
    await check_ten_thousand_calls(services.redis_url)


async def test_a_key_holds_no_more_streams_than_it_may_over_all_processes(
    services: Services, valkey: redis.Redis
) -> None:
    await check_streams_over_processes(services.redis_url)


def chat(key: Key, **more: Any) -> httpx2.Response:
    return key.http.post("/v1/chat/completions", json={"model": "fake", "messages": HELLO, **more})


def check_refused(response: httpx2.Response, kind: str) -> None:
    error = check_problem(response, 429, "rate_limit_exceeded")
    assert error["type"] == kind
    assert 0 < int(response.headers["retry-after"]) <= 120
    assert 0 < int(response.headers["retry-after-ms"]) <= 120_000


def test_requests_per_minute_are_counted_and_shown_in_headers(guarded: Guarded) -> None:
    key = guarded.key(requests_per_minute=2)
    first, second, third = (chat(key) for _ in range(3))
    assert [answer.status_code for answer in (first, second)] == [200, 200]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "30s"
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    check_refused(third, "requests")
    assert key.http.get("/v1/models").status_code == 200
    assert chat(guarded.key()).status_code == 200


def test_calls_that_run_no_model_have_their_own_limit(guarded: Guarded) -> None:
    key, sibling = guarded.key("caller", calls_per_minute=3, requests_per_minute=5), guarded.key("caller")
    answers = [key.http.get("/v1/batches"), key.http.get("/v1/files/file-none"), key.http.post("/v1/batches", json={})]
    assert [answer.status_code for answer in answers] == [200, 404, 400]
    assert [answer.headers["x-ratelimit-remaining-calls"] for answer in answers] == ["2", "1", "0"]
    assert answers[0].headers["x-ratelimit-limit-calls"] == "3"
    check_refused(key.http.get("/v1/batches"), "calls")
    check_refused(key.http.delete("/v1/files/file-none"), "calls")
    with pytest.raises(openai.RateLimitError) as caught:
        key.client.files.list()
    assert caught.value.code == "rate_limit_exceeded"
    question = chat(key)
    assert question.status_code == 200, "what asks a model is a request, and no call"
    assert question.headers["x-ratelimit-remaining-requests"] == "4"
    assert "x-ratelimit-limit-calls" not in question.headers
    for other in (sibling, guarded.key("another")):
        assert other.http.get("/v1/batches").status_code == 200


def test_a_key_without_limits_has_the_call_limit_of_the_settings(guarded: Guarded) -> None:
    answer = guarded.key().http.get("/v1/models")
    assert answer.headers["x-ratelimit-limit-calls"] == str(Settings().calls_per_minute)
    assert "x-ratelimit-limit-requests" not in answer.headers
    assert "x-ratelimit-limit-calls" not in chat(guarded.key()).headers


async def test_calls_without_a_key_are_limited_only_by_the_setting(
    settings: Settings, database: Database, valkey: redis.Redis
) -> None:
    async with inside(settings) as http:
        answers = [await http.get("/v1/models") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 5
        assert not [name for name in answers[0].headers if name.startswith("x-ratelimit")]
    async with inside(settings.model_copy(update={"keyless_calls_per_minute": 1})) as http:
        assert (await http.get("/v1/models")).status_code == 200
        check_refused(await http.get("/v1/models"), "calls")


async def test_batches_of_a_tenant_per_hour_are_counted_over_its_keys(
    settings: Settings, database: Database, valkey: redis.Redis, keys_made: MakeKey
) -> None:
    first, second, stranger = keys_made("busy"), keys_made("busy"), keys_made("idle")
    file_ids = {}
    with database.begin() as connection:
        for tenant in ("busy", "idle"):
            file_ids[tenant] = make_file(connection)
            connection.execute(update(File).where(File.id == file_ids[tenant]).values(tenant_id=tenant))

    def create(http: httpx2.AsyncClient, key: str, tenant: str = "busy", **headers: str) -> Awaitable[httpx2.Response]:
        body = {"input_file_id": file_ids[tenant], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return http.post("/v1/batches", json=body, headers={"authorization": f"Bearer {key}", **headers})

    async with inside(settings.model_copy(update={"batches_per_hour": 2})) as http:
        once = {"idempotency-key": "the-first"}
        made = [await create(http, first, **once), await create(http, first, **once), await create(http, second)]
        assert [answer.status_code for answer in made] == [200] * 3
        assert made[0].json()["id"] == made[1].json()["id"], "it was made once and counts once"
        assert made[2].headers["x-ratelimit-remaining-batches"] == "0"
        for key in (first, second):
            check_refused(await create(http, key), "batches")
        assert (await create(http, stranger, "idle")).status_code == 200


def test_a_retry_is_a_batch_that_counts(guarded: Guarded, tmp_path: Path) -> None:
    key = guarded.key("again")
    batch_id = start_batch(key.client, write_lines(tmp_path / "in.jsonl", batch_lines(2, "unknown")))
    wait_for(lambda: key.client.batches.retrieve(batch_id).completed_at is not None, "it ends, with failed lines")
    retried = key.http.post(f"/v1/batches/{batch_id}/retry")
    assert retried.status_code == 200, retried.text
    assert retried.headers["x-ratelimit-limit-batches"] == str(Settings().batches_per_hour)
    assert "x-ratelimit-limit-batches" not in key.http.get(f"/v1/batches/{batch_id}").headers


def test_tokens_per_minute_count_the_prompt_and_the_longest_answer(guarded: Guarded) -> None:
    key = guarded.key(tokens_per_minute=1000)
    first, second = chat(key, max_tokens=900), chat(key, max_tokens=900)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 100
    assert "x-ratelimit-limit-requests" not in first.headers
    check_refused(second, "tokens")
    too_large = chat(key, max_tokens=1001)
    check_problem(too_large, 429, "rate_limit_exceeded")
    assert too_large.headers["x-should-retry"] == "false"


def test_the_official_client_raises_a_rate_limit_error_with_its_headers(guarded: Guarded) -> None:
    key = guarded.key(requests_per_minute=1)
    key.client.chat.completions.create(model="fake", messages=HELLO)
    with pytest.raises(openai.RateLimitError) as caught:
        key.client.chat.completions.create(model="fake", messages=HELLO)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_streams_beyond_the_limit_are_refused_until_one_ends(guarded: Guarded) -> None:
    key = guarded.key(concurrent_streams=1)
    with key.client.chat.completions.create(model="slow", messages=HELLO, max_tokens=200, stream=True) as stream:
        next(stream)
        check_refused(chat(key, stream=True), "streams")
        assert chat(key).status_code == 200
    wait_for(lambda: chat(key, stream=True).status_code == 200, "the stream is given back")


def test_a_queue_that_is_full_refuses_chats_and_fails_batches(guarded: Guarded, tmp_path: Path) -> None:
    key = guarded.key(queued_tokens=3000)
    small, large = batch_lines(20, "slow", max_tokens=50), batch_lines(200, "fake")
    running = start_batch(key.client, write_lines(tmp_path / "small.jsonl", small))
    wait_for(lambda: key.client.batches.retrieve(running).status == "in_progress", "it runs")
    refused = start_batch(key.client, write_lines(tmp_path / "large.jsonl", large))
    wait_for(lambda: key.client.batches.retrieve(refused).status == "failed", "it is refused")
    errors = key.client.batches.retrieve(refused).errors
    assert errors is not None
    assert errors.data is not None
    assert [error.code for error in errors.data] == ["token_limit_exceeded"]
    check_refused(chat(key, messages=[{"role": "user", "content": "x" * 10_000}]), "tokens")
    assert chat(key).status_code == 200
    key.client.batches.cancel(running)


def test_a_tenant_has_no_more_batches_and_lines_waiting_than_its_caps(guarded: Guarded, tmp_path: Path) -> None:
    key = guarded.key("capped")
    with guarded.database.begin() as connection:
        connection.execute(keys.set_caps("capped", open_batches=1, queued_lines=30)).one()
    running = start_batch(key.client, write_lines(tmp_path / "a.jsonl", batch_lines(20, "slow", max_tokens=50)))
    with pytest.raises(openai.RateLimitError) as caught:
        start_batch(key.client, tmp_path / "a.jsonl")
    assert caught.value.code == "rate_limit_exceeded"
    key.client.batches.cancel(running)
    wait_for(lambda: key.client.batches.retrieve(running).status == "cancelled", "it has ended")
    refused = start_batch(key.client, write_lines(tmp_path / "b.jsonl", batch_lines(31)))
    wait_for(lambda: key.client.batches.retrieve(refused).status == "failed", "it is refused")
    errors = key.client.batches.retrieve(refused).errors
    assert errors is not None
    assert errors.data is not None
    assert errors.data[0].code == "line_limit_exceeded"
    assert start_batch(guarded.key("uncapped").client, tmp_path / "a.jsonl")
