"""Progress of the loop: its current activity with a time limit, for the watchdog, and the measured speed of decodes.

The limit of a decode follows its size and the speed of the model, so that a slow model is not taken for a hung one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

_MARGIN: Final = 10.0  # other processes, longer contexts and cold weights may slow a decode down
_FORGOTTEN: Final = 0.95  # of a slow decode by each faster one after it
FIRST_DECODE_SECONDS: Final = 600.0  # for the first token of a model, whose weights may still be on the disk


class Pace:
    """Seconds that decodes of one kind take, by size.

    A decode costs at most in proportion to its tokens, so each measured one limits all others: a smaller one takes no longer, and
    one of twice the size takes twice the time at most.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # of slow decodes with this bit length of their number of tokens

    def record(self, num_tokens: int, seconds: float) -> None:
        """Add a measured decode."""
        size = num_tokens.bit_length()
        self._seconds[size] = max(seconds, _FORGOTTEN * self._seconds.get(size, 0.0))

    def limit(self, num_tokens: int) -> float:
        """Seconds after which a decode of this size has certainly stopped; FIRST_DECODE_SECONDS for the first one."""
        if not self._seconds:
            return FIRST_DECODE_SECONDS
        expected = (seconds * max(1.0, num_tokens / (1 << (size - 1))) for size, seconds in self._seconds.items())
        return _MARGIN * min(expected)


class Activity(msgspec.Struct, frozen=True, gc=False):
    """One thing that the loop does. The watchdog ends a process that does it for longer than `limit_seconds`."""

    number: int
    limit_seconds: float


class Progress:
    """Written by the loop's thread; any thread may read `current`, which is None while the loop waits for work."""

    def __init__(self, hang_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.current: Activity | None = None
        self._hang_seconds = hang_seconds
        self._clock = clock
        self._numbers = itertools.count(1)

    def begin(self, limit_seconds: float = 0.0) -> None:
        """Begin something that takes `hang_seconds` at most, or `limit_seconds` if that is more."""
        self.current = Activity(next(self._numbers), max(self._hang_seconds, limit_seconds))

    def end(self) -> None:
        """Wait for work."""
        self.current = None

    @contextmanager
    def decode(self, pace: Pace, num_tokens: int) -> Iterator[None]:
        """Run a decode within the limit of its pace, and record its time. Waiting for anything else must not be inside."""
        self.begin(pace.limit(num_tokens))
        began = self._clock()
        yield
        pace.record(num_tokens, self._clock() - began)
        self.begin()
