"""Watchdog: an iteration of the loop that does not return is found, and only that."""

from __future__ import annotations

from engine.process.watchdog import Watchdog


def check(*iterations: int | None, hang_seconds: float = 2) -> list[bool]:
    """Results of a watchdog that checks once a second and sees these iterations."""
    left = list(iterations)
    watchdog = Watchdog(lambda: left.pop(0), hang_seconds)
    return [watchdog.is_hung(1) for _ in iterations]


def test_an_iteration_that_does_not_return_is_found() -> None:
    assert check(7, 7, 7) == [False, False, True]


def test_any_number_of_different_iterations_is_no_hang() -> None:
    assert not any(check(*range(1, 20)))


def test_an_idle_loop_does_not_hang() -> None:
    assert not any(check(*[None] * 20))
    assert not any(check(1, 1, None, 1, 1, None))
