"""Time limits of decodes: they follow size and measured speed, so that a slow model is not taken for a hung one."""

from __future__ import annotations

import pytest

from engine.process.watchdog import Watchdog
from engine.progress import FIRST_DECODE_SECONDS, Pace, Progress
from tests.support.clock import Clock


def measured(*decodes: tuple[int, float]) -> Pace:
    pace = Pace()
    for num_tokens, seconds in decodes:
        pace.record(num_tokens, seconds)
    return pace


def test_the_first_decode_of_a_model_has_a_generous_limit() -> None:
    assert Pace().limit(1) == FIRST_DECODE_SECONDS


@pytest.mark.parametrize("num_tokens", [1, 2, 100, 512, 2048])
def test_a_slow_model_may_take_its_time_for_a_step_of_any_size(num_tokens: int) -> None:
    """Half a token per second, in steps that gain nothing from their size."""
    expected = 2.0 * num_tokens
    limit = measured((1, 2.0)).limit(num_tokens)
    assert 2 * expected < limit < 30 * expected


def test_a_measured_step_limits_others_of_its_size() -> None:
    pace = measured((1, 0.1), (512, 3.0))
    assert pace.limit(512) == pytest.approx(30)
    assert pace.limit(511) < 60
    assert pace.limit(2048) < 150


def test_a_slow_step_is_remembered_for_a_while() -> None:
    pace = measured((512, 100.0), *[(512, 1.0)] * 10)
    assert pace.limit(512) > 500
    assert measured((512, 100.0), *[(512, 1.0)] * 200).limit(512) == pytest.approx(10)


def check(progress: Progress, seconds: int) -> int | None:
    """The second at which a watchdog finds the loop hung."""
    watchdog = Watchdog(lambda: progress.current, 60)
    return next((second for second in range(seconds) if watchdog.is_hung(1)), None)


@pytest.mark.parametrize(("seconds_per_token", "found"), [(0.001, (60, 62)), (2.0, (2 * 512, 30 * 2 * 512))])
def test_a_hung_step_is_found_in_a_time_that_follows_the_speed_of_the_model(
    seconds_per_token: float, found: tuple[int, int]
) -> None:
    clock = Clock()
    progress, pace = Progress(60, clock), Pace()
    with progress.decode(pace, 1):
        clock.now += seconds_per_token
    with progress.decode(pace, 512):
        second = check(progress, 100_000)
    assert second is not None
    assert found[0] <= second <= found[1]


def test_what_is_no_decode_has_the_usual_limit() -> None:
    clock = Clock()
    progress, pace = Progress(60, clock), measured((1, 100.0))
    progress.begin()
    assert check(progress, 1000) == 60
    with progress.decode(pace, 1):
        assert check(progress, 200) is None
    assert check(progress, 1000) == 60, "after a decode the loop goes on with other things"
    progress.end()
    assert check(progress, 1000) is None
