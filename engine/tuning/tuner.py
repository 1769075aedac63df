"""Tuner: runs a search beside the work of an engine: while it has none, and for a part of the time of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from engine.config import AUTO_SLOTS, EngineConfig, KvLayout, Tuning
from engine.errors import ModelFailed
from engine.log import log_stderr
from engine.tuning.lab import Choice, Lab, Task
from engine.tuning.search import CELLS, ROWS_WITH_DRAFTS, Limits, Search, Steps

_SHARE: Final = 1 / 3  # seconds for each second of a batch
_MOST_CREDIT: Final = 1.0


class Tuner:
    """One search in a lab. `result` is None until it has ended; a search that fails ends without one."""

    def __init__(self, lab: Lab, steps: Steps, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._lab = lab
        self._steps = steps
        self._clock = clock
        self._credit = 0.0
        self._next: Task | None = None
        self.is_running = True
        self.result: Tuning | None = None

    def allows_step(self, *, is_idle: bool) -> bool:
        """May the next task run now? Beside a batch only when that has computed for long enough."""
        return self.is_running and (is_idle or self._credit > 0)

    def earn(self, seconds: float) -> None:
        """Record the time of a step of a batch."""
        self._credit = min(self._credit + _SHARE * seconds, _MOST_CREDIT)

    def step(self) -> None:
        """Run the next task. Raises what the backend raises."""
        began = self._clock()
        try:
            if self._next is None:
                self._next = next(self._steps)
                return
            is_done = self._lab.compute(self._next)
            self._next = self._steps.send(self._clock() - began if is_done else math.inf)
        except StopIteration as end:
            self.result = end.value
            self.stop()
        finally:
            self._credit -= self._clock() - began

    def stop(self) -> None:
        """End the search, and free the memory of the lab."""
        self.is_running = False
        self._lab.close()

    def fail(self, error: Exception) -> None:
        """End the search after an error: the engine serves with the settings that it has."""
        log_stderr(f"the speed of the model was not measured: {error}\n")
        self.stop()

    def apply(self, config: EngineConfig) -> bool:
        """Serve with these settings; return whether the memory of the decoder is a new one."""
        try:
            return self._lab.apply(config)
        except ModelFailed as error:
            log_stderr(f"the fastest settings do not fit into memory: {error}\n")
            return True


def new_tuner(lab: Lab, config: EngineConfig) -> Tuner:
    """The tuner of an engine with this configuration, which has not begun."""
    return Tuner(lab, _steps(lab, config))


def _steps(lab: Lab, config: EngineConfig) -> Steps:
    context = min(CELLS, config.context_size)
    sequences = min(lab.most_sequences(context), config.batch_tokens)
    if not sequences:
        return None
    slots = None if config.slots == AUTO_SLOTS else config.slots
    limits = Limits(
        tunable=config.tunable,
        context_size=config.context_size,
        sequences=sequences if slots is None else min(sequences, max(slots, ROWS_WITH_DRAFTS)),
        slots=slots,
        batch_tokens=config.batch_tokens,
        may_turn_flash_off=not config.cache_type_v.startswith("q"),
    )
    layout = KvLayout.UNIFIED if config.kv_layout is KvLayout.UNIFIED else KvLayout.SPLIT
    start = Choice(kv_layout=layout, flash_attention=config.flash_attention, ubatch_tokens=config.ubatch_tokens)
    return (yield from Search(limits, start).steps())
