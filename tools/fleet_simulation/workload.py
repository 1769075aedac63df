"""Workload: who sends which batches when. Everything is drawn from one seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
_MEDIAN_LINES: Final = 4_000.0
_SPREAD: Final = 1.2  # of the logarithm of a batch's lines
_MAX_LINES: Final = 50_000
_WINDOWS: Final = ((24 * HOUR, 0.85), (4 * HOUR, 0.1), (HOUR, 0.05))  # completion windows and their shares
_PRIORITIES: Final = ((0, 0.9), (10, 0.05), (-10, 0.05))
_FLOOD_SHARE: Final = 0.05  # of all lines, which one tenant sends within an hour
_FLOOD_AT: Final = 2 * DAY + 10 * HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A batch that a tenant sends at `at`, in seconds from the start of a Monday."""

    at: float
    tenant: int
    model: int
    lines: int
    window: float
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A week of batches. The share of a tenant, and of a model, falls as one over its rank."""

    tenants: int
    models: int
    lines: int
    days: float
    seed: int

    @property
    def sending_seconds(self) -> float:
        """Time in which batches arrive. The last day is left to finish in."""
        return max(self.days - 1, self.days / 2) * DAY

    def arrivals(self) -> Iterator[Arrival]:
        """Draw all batches in order of time; tenant 0 also sends a flood on Wednesday at ten."""
        rng = random.Random(self.seed)
        tenants, models = _falling(self.tenants), _falling(self.models)
        has_flood = self.days * DAY > _FLOOD_AT
        drawn = list[Arrival]()
        left = self.lines * (1 - _FLOOD_SHARE * has_flood)
        while left > 0:
            at, lines = self._time(rng), min(_lines(rng), math.ceil(left))
            left -= lines
            (tenant,), (model,) = rng.choices(range(self.tenants), tenants), rng.choices(range(self.models), models)
            drawn.append(
                Arrival(
                    at=at,
                    tenant=tenant,
                    model=model,
                    lines=lines,
                    window=_draw(rng, _WINDOWS),
                    priority=int(_draw(rng, _PRIORITIES)),
                )
            )
        flood = int(self.lines * _FLOOD_SHARE * has_flood)
        for first in range(0, flood, _MAX_LINES):
            at = _FLOOD_AT + rng.random() * HOUR
            lines = min(_MAX_LINES, flood - first)
            drawn.append(Arrival(at=at, tenant=0, model=0, lines=lines, window=24 * HOUR, priority=0))
        yield from sorted(drawn, key=lambda arrival: arrival.at)

    def _time(self, rng: random.Random) -> float:
        """More by day than by night, and half as much at the weekend."""
        while True:
            at = rng.random() * self.sending_seconds
            by_day = 0.6 + 0.4 * math.sin((at % DAY / DAY - 0.25) * math.tau)
            if rng.random() < by_day * (0.5 if at // DAY % 7 >= 5 else 1.0):
                return at


def _falling(number: int) -> list[float]:
    return [1 / rank for rank in range(1, number + 1)]


def _lines(rng: random.Random) -> int:
    return min(max(1, int(rng.lognormvariate(math.log(_MEDIAN_LINES), _SPREAD))), _MAX_LINES)


def _draw(rng: random.Random, choices: tuple[tuple[float, float], ...]) -> float:
    return rng.choices([value for value, _ in choices], [share for _, share in choices])[0]
