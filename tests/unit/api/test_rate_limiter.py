"""Rate limiter: the arithmetic with a clock of the test, on a Valkey in the process and without any."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.services.rate_limiter import Rate, RateLimiter, duration
from tests.support.clock import Clock
from tests.support.fake_valkey import FakeValkey
from tests.support.rates import NOWHERE, check_ten_thousand_calls, take_all


@pytest.fixture(params=["valkey", "process"])
def url(request: pytest.FixtureRequest) -> str:
    """Limits behave the same in Valkey and in the process."""
    if request.param == "valkey":
        request.getfixturevalue("fake_valkey")
        return "redis://fake"
    return NOWHERE


async def test_a_limit_is_used_up_and_comes_back_evenly(url: str) -> None:
    levels = await take_all(url, [(0, 59), (0, 1), (0, 1), (0.5, 1), (0.5, 1), (30, 30), (0, 1)])
    assert [level.is_taken for level in levels] == [True, True, False, False, True, True, False]
    assert [level.remaining for level in levels] == [1, 0, 0, 0, 0, 0, 0]
    assert [level.retry_seconds for level in levels] == pytest.approx([0, 0, 1, 0.5, 0, 0, 1], abs=1e-4)


async def test_a_limit_left_alone_is_full_after_its_reset(url: str) -> None:
    first, second = await take_all(url, [(0, 45), (45, 60)])
    assert first.reset_seconds == pytest.approx(45, abs=1e-4)
    assert second.is_taken


async def test_a_limit_per_hour_comes_back_over_the_hour(url: str) -> None:
    levels = await take_all(url, [(0, 59), (0, 2), (0, 1), (0, 1), (60, 1), (3600, 60)], per="hour")
    assert [level.is_taken for level in levels] == [True, False, True, False, True, True]
    assert levels[3].retry_seconds == pytest.approx(60, abs=1e-3)


async def test_a_refused_request_takes_nothing(url: str) -> None:
    levels = await take_all(url, [(0, 50), (0, 20), (0, 20), (0, 10)])
    assert [level.is_taken for level in levels] == [True, False, False, True]


async def test_more_than_the_limit_itself_is_never_taken(url: str) -> None:
    assert not any(level.is_taken for level in await take_all(url, [(0, 61), (1000, 61)]))


async def test_a_clock_that_was_far_ahead_blocks_a_limit_for_a_minute_at_most(url: str) -> None:
    levels = await take_all(url, [(3600, 60), (-3600, 1), (60, 60)])
    assert [level.is_taken for level in levels] == [True, False, True]


async def test_of_ten_thousand_calls_at_once_the_limit_is_taken_and_others_are_not_affected() -> None:
    await check_ten_thousand_calls(NOWHERE)


@given(st.lists(st.tuples(st.floats(0, 90), st.integers(1, 70)), max_size=12), st.integers(1, 70))
async def test_no_minute_gives_more_than_twice_the_limit(steps: list[tuple[float, int]], limit: int) -> None:
    """A full limit gives all its units at once, and those that refill within the minute."""
    levels, now = await take_all(NOWHERE, steps, limit), 0.0
    taken = []
    for (seconds, cost), level in zip(steps, levels, strict=True):
        now += seconds
        taken.append((now, cost if level.is_taken else 0))
    for start, _ in taken:
        assert sum(cost for at, cost in taken if start <= at < start + 60) <= 2 * limit + 1e-6
    assert all(0 <= level.remaining <= limit and level.reset_seconds <= 60 + 1e-6 for level in levels)


async def test_limits_are_kept_in_the_process_while_valkey_is_away(fake_valkey: FakeValkey) -> None:
    clock = Clock()
    limiter, rate = RateLimiter("redis://fake", "test:", clock), Rate(owner="key", kind="requests", limit=2)
    with fake_valkey.away():
        levels = [await limiter.take(rate, 1) for _ in range(3)]
    assert [level.is_taken for level in levels] == [True, True, False]
    clock.now += 60  # the pause after an outage is over
    assert [(await limiter.take(rate, 1)).is_taken for _ in range(3)] == [True, True, False]
    assert fake_valkey.client.exists("test:limit:key:requests")
    await limiter.close()


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


async def test_hosts_whose_clocks_differ_by_minutes_share_a_limit(
    fake_valkey: FakeValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their requests alternate, as behind a load balancer: the clock of Valkey decides."""
    early, late = (RateLimiter("redis://fake", "test:") for _ in range(2))
    rate = Rate(owner="key", kind="requests", limit=10)
    taken = []
    for _ in range(4):
        for limiter, shift in ((late, 300), (early, 0)):
            with monkeypatch.context() as patch:
                patch.setattr("api.services.rate_limiter.time", SimpleNamespace(time=lambda: time.time() + shift))  # noqa: B023
                taken.append((await limiter.take(rate, 1)).is_taken)
    assert taken == [True] * 8
    for limiter in (early, late):
        await limiter.close()
