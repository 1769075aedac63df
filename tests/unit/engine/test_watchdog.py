"""When a turn of the loop is taken for one that never returns."""

from __future__ import annotations

from engine.process.watchdog import Watchdog


def looks(*turns: int | None, hang_seconds: float = 2) -> list[bool]:
    """What a watchdog thinks that looks once a second and sees these turns."""
    left = list(turns)
    dog = Watchdog(lambda: left.pop(0), hang_seconds)
    return [dog.is_hung(1) for _ in turns]


def test_a_turn_that_does_not_return_is_found() -> None:
    assert looks(7, 7, 7) == [False, False, True]


def test_turns_that_follow_each_other_are_no_hang_however_many() -> None:
    assert not any(looks(*range(1, 20)))


def test_an_idle_loop_does_not_hang() -> None:
    assert not any(looks(*[None] * 20))
    assert not any(looks(1, 1, None, 1, 1, None))
