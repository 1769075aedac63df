"""Turns of models on their devices: when a model that batches wait for is in memory, and when its work has ended.

The forecast repeats the rules of residency for batches in a simple form: each resident model has a place, waiting models get the
places in order of priority and age, and where more models wait than there are places, each keeps its place for a turn.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

_MOST_TURNS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWork:
    """A model in memory, or one that batches wait for.

    `work_seconds` is the time that its batches still need, 0 without any; None: not known, so it uses every turn it gets.
    `is_loading`: it has its place, and `load_seconds` are left at most.
    """

    name: str
    work_seconds: float | None
    load_seconds: float = 0.0
    is_resident: bool = False
    is_loading: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds from now until a model is in memory, and until its batches have ended; None: cannot be estimated."""

    ready_seconds: float | None
    end_seconds: float | None


def forecast(works: Sequence[ModelWork], name: str, turn_seconds: float) -> Forecast:
    """Forecast the turns of one model. Models of equal priority wait in the order in which they are given."""
    queue = sorted(
        (each for each in works if not (each.is_resident or each.is_loading)), key=lambda each: -each.priority
    )
    left = {each.name: each.work_seconds for each in works}
    order, places = count(), list[tuple[float, int, str]]()  # the time at which a turn ends, and of which model
    ready: float | None = None

    def take(work: ModelWork, start: float) -> None:
        nonlocal ready
        begin = start + (0.0 if work.is_resident else work.load_seconds)
        if work.name == name and ready is None:
            ready = begin
        seconds = left[work.name]
        turn = turn_seconds if seconds is None or (queue and seconds > turn_seconds) else seconds
        left[work.name] = None if seconds is None else seconds - turn
        heapq.heappush(places, (begin + turn, next(order), work.name))

    by_name = {each.name: each for each in works}
    for each in works:
        if each.is_resident or each.is_loading:
            take(each, 0.0)
    if not places and queue:
        take(queue.pop(0), 0.0)
    for _ in range(_MOST_TURNS):
        if not places:
            break
        now, _, ended = heapq.heappop(places)
        seconds = left[ended]
        if ended == name and seconds == 0:
            return Forecast(ready, now)
        if seconds is None or seconds > 0:
            queue.append(_absent(by_name[ended]))
        if ready is not None and left[name] is None:
            break
        if queue:
            take(queue.pop(0), now)
    return Forecast(ready, None)


def _absent(work: ModelWork) -> ModelWork:
    return ModelWork(name=work.name, work_seconds=None, load_seconds=work.load_seconds, priority=work.priority)
