"""Limit of the requests that one server has at a time, found by additive increase and multiplicative decrease.

The rule. A round is a number of answers that all came under one limit, which was used fully; its throughput is their tokens
per second. At first the limit doubles after each round. It stops to do so when throughput grew by less than a fifth of what
the limit grew by, and goes back to the limit before. From then on it keeps a limit for some rounds, tries one that is an
eighth larger, and keeps that if throughput grew with it; otherwise it tries one that is a tenth smaller, and keeps that if
throughput does not fall with it, since the server then only queues less. So it stays near the smallest limit with full
throughput. It is halved by 429 and 503, by time-outs, and when throughput at an unchanged limit falls by a quarter, which is
rising latency without more throughput; a limit of N that was refused is not tried again for N seconds, and a minute at most.
It is 1 at least and 256 at most. Rounds in which there was too little to send change nothing.
Sources: Chiu and Jain, "Analysis of the Increase and Decrease Algorithms" (1989); Netflix, "Performance Under Load" (2018).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_LIMIT: Final = 256
FIRST_LIMIT: Final = 8
_GROWS: Final = 0.2  # of the growth of the limit
_UP: Final = 8  # a part of the limit
_DOWN: Final = 10
_HELD_ROUNDS: Final = 4
_FALLEN: Final = 0.75
_REFUSED_SECONDS: Final = 60.0
_ROUND_ANSWERS: Final = 16
_ROUND_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Point:
    """A limit and the throughput that it had."""

    limit: int
    rate: float

    def growth(self, other: _Point) -> float:
        """The growth of throughput from here to another limit, as a part of that of the limit; 1 is proportional."""
        return (other.rate / self.rate - 1) / (other.limit / self.limit - 1)


class Limiter:
    """The limit of one server. With `fixed`, it is that number always."""

    def __init__(self, clock: Callable[[], float], fixed: int | None = None) -> None:
        self._clock = clock
        self._fixed = fixed
        self.limit = fixed or FIRST_LIMIT
        self.epoch = 0  # number of the present limit; requests keep that under which they were sent
        self._is_starting = fixed is None
        self._best: _Point | None = None
        self._num_held = 0
        self._refused_limit, self._refused_at = 0, -_REFUSED_SECONDS
        self._began_at: float | None = None
        self._num_answers = 0
        self._work = 0

    @property
    def max_limit(self) -> int:
        """The largest limit that there may be."""
        return self._fixed or MAX_LIMIT

    @property
    def is_fixed(self) -> bool:
        """Has the operator chosen the limit?"""
        return self._fixed is not None

    def add_answer(self, epoch: int, work: int, *, is_full: bool) -> None:
        """Count an answer of `work` tokens. `is_full`: the server had as many requests as it may have."""
        if self.is_fixed:
            return
        if not is_full:
            self._begin_round()
            return
        now = self._clock()
        if self._began_at is None:
            if epoch == self.epoch:  # the first answer under this limit starts the clock
                self._began_at = now
            return
        self._num_answers += 1
        self._work += max(1, work)
        seconds = now - self._began_at
        num_wanted = self.limit if self._is_starting else max(self.limit, _ROUND_ANSWERS)
        if self._num_answers >= num_wanted and seconds >= _ROUND_SECONDS:
            self._end_round(_Point(self.limit, self._work / seconds))

    def add_overload(self, epoch: int) -> None:
        """Halve the limit for a refusal or a time-out, once for all requests that were sent under it."""
        if self.is_fixed or epoch != self.epoch:
            return
        self._refused_limit, self._refused_at = self.limit, self._clock()
        self._back_off()

    def _end_round(self, point: _Point) -> None:
        best = self._best
        if best is None:
            self._best, self._num_held = point, 0
            self._set(self.limit * 2 if self._is_starting else self._raised())
        elif point.limit > best.limit:
            self._end_raise(best, point)
        elif point.limit < best.limit:
            if best.growth(point) < _GROWS:
                self._best = point
                self._set(_lowered(point.limit))
            else:
                self._hold(best)
        elif point.rate < best.rate * _FALLEN:
            self._back_off()
        else:
            self._num_held += 1
            self._best = _Point(best.limit, (best.rate + point.rate) / 2)
            if self._num_held >= _HELD_ROUNDS:
                self._set(self._raised())
            else:
                self._begin_round()

    def _end_raise(self, best: _Point, point: _Point) -> None:
        if best.growth(point) >= _GROWS:
            self._best = point
            self._set(point.limit * 2 if self._is_starting else self._raised())
        elif self._is_starting:
            self._is_starting = False
            self._hold(best)
        else:
            self._set(_lowered(best.limit))

    def _raised(self) -> int:
        """The next larger limit, but not one that the server has just refused."""
        raised = self.limit + max(1, self.limit // _UP)
        if self._clock() - self._refused_at < min(self._refused_limit, _REFUSED_SECONDS):
            raised = min(raised, max(self.limit, self._refused_limit - 1))
        return raised

    def _hold(self, best: _Point) -> None:
        self._num_held = 0
        self._best = best
        self._set(best.limit)

    def _back_off(self) -> None:
        self._is_starting = False
        self._best = None
        self._set(self.limit // 2)

    def _set(self, limit: int) -> None:
        self.limit = min(max(limit, 1), MAX_LIMIT)
        self.epoch += 1
        self._begin_round()

    def _begin_round(self) -> None:
        self._began_at = None
        self._num_answers = 0
        self._work = 0


def _lowered(limit: int) -> int:
    return limit - max(1, limit // _DOWN)
