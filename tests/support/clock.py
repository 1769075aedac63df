"""A clock for tests, which moves only when the test moves it."""

from __future__ import annotations


class Clock:
    """Returns `now`, in seconds."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
