"""Watchdog: one thing that the loop does for too long is found, and only that."""

from __future__ import annotations

from engine.process.watchdog import Watchdog
from engine.progress import Activity

SEVENTH = Activity(7, 2.0)


def check(*activities: Activity | None) -> list[bool]:
    """Results of a watchdog that checks once a second and sees these activities."""
    left = list(activities)
    watchdog = Watchdog(lambda: left.pop(0), 2)
    return [watchdog.is_hung(1) for _ in activities]


def test_something_that_does_not_end_is_found_at_its_own_limit() -> None:
    assert check(SEVENTH, SEVENTH, SEVENTH) == [False, False, True]
    long = Activity(8, 4.0)
    assert check(long, long, long, long, long) == [False, False, False, False, True]


def test_any_number_of_different_things_is_no_hang() -> None:
    assert not any(check(*(Activity(number, 2.0) for number in range(1, 20))))


def test_an_idle_loop_does_not_hang() -> None:
    assert not any(check(*[None] * 20))
    assert not any(check(SEVENTH, SEVENTH, None, SEVENTH, SEVENTH, None))
