"""Rates and streams: the arithmetic with a clock in hand, alone and on a real Valkey; then over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from api.services.rate_limiter import Level, Rate, RateLimiter, duration
from api.services.stream_limiter import NoFreeStream, StreamSlots
from cli.stack.services import Services
from core.settings import Settings
from db import keys
from db.tables import File
from tests.service.api.conftest import MakeKey
from tests.support.check import check_problem
from tests.support.guarded import Guarded, Key
from tests.support.inside import inside
from tests.support.rows import make_file
from tests.support.stack import batch_lines, start_batch, wait_for, write_lines
from workers.context import Database

NOWHERE = "redis://127.0.0.1:9/0"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def take_all(
    url: str, steps: list[tuple[float, int]], limit: int = 60, per: Literal["minute", "hour"] = "minute"
) -> list[Level]:
    """What each step gets: wait so many seconds, then ask for so much."""

    async def run() -> list[Level]:
        clock = Clock()
        limiter = RateLimiter(url, "test:", clock)
        levels = []
        for seconds, cost in steps:
            clock.now += seconds
            levels.append(await limiter.take(Rate(owner="key", kind="requests", limit=limit, per=per), cost))
        await limiter.close()
        return levels

    return asyncio.run(run())


@pytest.fixture(params=["valkey", "process"])
def url(request: pytest.FixtureRequest, services: Services, valkey: redis.Redis) -> str:
    """Limits behave the same wherever they are kept."""
    return services.redis_url if request.param == "valkey" else NOWHERE


def test_a_limit_is_used_up_and_comes_back_evenly(url: str) -> None:
    levels = take_all(url, [(0, 59), (0, 1), (0, 1), (0.5, 1), (0.5, 1), (30, 30), (0, 1)])
    assert [level.is_taken for level in levels] == [True, True, False, False, True, True, False]
    assert [level.remaining for level in levels] == [1, 0, 0, 0, 0, 0, 0]
    assert [level.retry_seconds for level in levels] == pytest.approx([0, 0, 1, 0.5, 0, 0, 1], abs=1e-4)


def test_a_limit_left_alone_is_full_after_its_reset(url: str) -> None:
    first, second = take_all(url, [(0, 45), (45, 60)])
    assert first.reset_seconds == pytest.approx(45, abs=1e-4)
    assert second.is_taken


def test_a_limit_per_hour_comes_back_over_the_hour(url: str) -> None:
    levels = take_all(url, [(0, 59), (0, 2), (0, 1), (0, 1), (60, 1), (3600, 60)], per="hour")
    assert [level.is_taken for level in levels] == [True, False, True, False, True, True]
    assert levels[3].retry_seconds == pytest.approx(60, abs=1e-3)


def test_what_is_refused_costs_nothing(url: str) -> None:
    levels = take_all(url, [(0, 50), (0, 20), (0, 20), (0, 10)])
    assert [level.is_taken for level in levels] == [True, False, False, True]


def test_more_than_the_limit_itself_is_never_taken(url: str) -> None:
    assert not any(level.is_taken for level in take_all(url, [(0, 61), (1000, 61)]))


def test_a_clock_that_was_far_ahead_locks_nobody_out_for_longer_than_a_minute(url: str) -> None:
    levels = take_all(url, [(3600, 60), (-3600, 1), (60, 60)])
    assert [level.is_taken for level in levels] == [True, False, True]


def test_of_ten_thousand_calls_at_once_the_limit_is_answered_and_others_are_not_touched(url: str) -> None:
    limit = Settings().calls_per_minute

    async def run() -> None:
        limiter = RateLimiter(url, "test:", Clock())
        levels = [await limiter.take(Rate(owner="greedy", kind="calls", limit=limit), 1) for _ in range(10_000)]
        assert sum(level.is_taken for level in levels) == limit
        assert 0 < levels[-1].retry_seconds <= 120
        other = await limiter.take(Rate(owner="other", kind="calls", limit=limit), 1)
        assert (other.is_taken, other.remaining) == (True, limit - 1)
        await limiter.close()

    asyncio.run(run())


@given(st.lists(st.tuples(st.floats(0, 90), st.integers(1, 70)), max_size=12), st.integers(1, 70))
def test_no_minute_gives_more_than_twice_the_limit(steps: list[tuple[float, int]], limit: int) -> None:
    """Full at its start, it may give the limit at once and what comes back meanwhile."""
    levels, now = take_all(NOWHERE, steps, limit), 0.0
    taken = []
    for (seconds, cost), level in zip(steps, levels, strict=True):
        now += seconds
        taken.append((now, cost if level.is_taken else 0))
    for start, _ in taken:
        assert sum(cost for at, cost in taken if start <= at < start + 60) <= 2 * limit + 1e-6
    assert all(0 <= level.remaining <= limit and level.reset_seconds <= 60 for level in levels)


def test_valkey_and_a_process_alone_agree(services: Services, valkey: redis.Redis) -> None:
    steps = [(0.25 * (index % 7), 1 + index * 7 % 23) for index in range(60)]
    for here, there in zip(take_all(NOWHERE, steps), take_all(services.redis_url, steps), strict=True):
        assert (here.is_taken, here.remaining) == (there.is_taken, there.remaining)
        assert here.reset_seconds == pytest.approx(there.reset_seconds, abs=1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0121, "13ms"),
        (0.999, "999ms"),
        (1, "1s"),
        (7.66, "7.66s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (83.4, "1m23.4s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_key_holds_no_more_streams_than_it_may_over_all_processes(services: Services, valkey: redis.Redis) -> None:
    async def run() -> None:
        clock = Clock()
        limiters = [RateLimiter(services.redis_url, "test:") for _ in range(2)]
        one, two = (StreamSlots(limiter.client, "test:", clock) for limiter in limiters)
        async with one.hold("a", 2), two.hold("a", 2), two.hold("b", 2):
            for slots in (one, two):
                with pytest.raises(NoFreeStream):
                    await slots.hold("a", 2).__aenter__()
        async with two.hold("a", 1):
            clock.now += 3600  # as if its process had died: Valkey forgets it
            async with one.hold("a", 1):
                pass
        for limiter in limiters:
            await limiter.close()

    asyncio.run(run())


def test_without_valkey_a_process_counts_its_own_streams() -> None:
    async def run() -> None:
        limiter = RateLimiter(NOWHERE, "test:")
        slots = StreamSlots(limiter.client, "test:")
        async with slots.hold("a", 1):
            with pytest.raises(NoFreeStream):
                await slots.hold("a", 1).__aenter__()
        async with slots.hold("a", 1):
            pass
        await limiter.close()

    asyncio.run(run())


def chat(key: Key, **more: Any) -> httpx2.Response:
    return key.http.post("/v1/chat/completions", json={"model": "fake", "messages": HELLO, **more})


def check_refused(response: httpx2.Response, kind: str) -> None:
    error = check_problem(response, 429, "rate_limit_exceeded")
    assert error["type"] == kind
    assert 0 < int(response.headers["retry-after"]) <= 120
    assert 0 < int(response.headers["retry-after-ms"]) <= 120_000


def test_requests_per_minute_are_counted_and_told(guarded: Guarded) -> None:
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


def test_calls_that_ask_no_model_have_a_limit_of_their_own(guarded: Guarded) -> None:
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


def test_a_key_that_says_nothing_has_the_calls_of_the_settings(guarded: Guarded) -> None:
    answer = guarded.key().http.get("/v1/models")
    assert answer.headers["x-ratelimit-limit-calls"] == str(Settings().calls_per_minute)
    assert "x-ratelimit-limit-requests" not in answer.headers
    assert "x-ratelimit-limit-calls" not in chat(guarded.key()).headers


def test_without_a_key_calls_are_counted_only_where_a_setting_says_so(
    settings: Settings, database: Database, valkey: redis.Redis
) -> None:
    async def unlimited(http: httpx2.AsyncClient) -> None:
        answers = [await http.get("/v1/models") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 5
        assert not [name for name in answers[0].headers if name.startswith("x-ratelimit")]

    async def limited(http: httpx2.AsyncClient) -> None:
        assert (await http.get("/v1/models")).status_code == 200
        check_refused(await http.get("/v1/models"), "calls")

    inside(settings, unlimited)
    inside(settings.model_copy(update={"keyless_calls_per_minute": 1}), limited)


def test_batches_of_a_tenant_per_hour_are_counted_over_its_keys(
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

    async def scene(http: httpx2.AsyncClient) -> None:
        once = {"idempotency-key": "the-first"}
        made = [await create(http, first, **once), await create(http, first, **once), await create(http, second)]
        assert [answer.status_code for answer in made] == [200] * 3
        assert made[0].json()["id"] == made[1].json()["id"], "it was made once and counts once"
        assert made[2].headers["x-ratelimit-remaining-batches"] == "0"
        for key in (first, second):
            check_refused(await create(http, key), "batches")
        assert (await create(http, stranger, "idle")).status_code == 200

    inside(settings.model_copy(update={"batches_per_hour": 2}), scene)


def test_a_retry_is_a_batch_that_counts(guarded: Guarded, tmp_path: Path) -> None:
    key = guarded.key("again")
    batch_id = start_batch(key.client, write_lines(tmp_path / "in.jsonl", batch_lines(2, "unknown")))
    wait_for(lambda: key.client.batches.retrieve(batch_id).completed_at is not None, "it ends, with failed lines")
    retried = key.http.post(f"/v1/batches/{batch_id}/retry")
    assert retried.status_code == 200, retried.text
    assert retried.headers["x-ratelimit-limit-batches"] == str(Settings().batches_per_hour)
    assert "x-ratelimit-limit-batches" not in key.http.get(f"/v1/batches/{batch_id}").headers


def test_tokens_per_minute_count_the_question_and_the_longest_answer(guarded: Guarded) -> None:
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
