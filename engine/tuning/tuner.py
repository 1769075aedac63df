"""Tuner: runs a search beside the work of an engine: while it has none, and for a part of the time of a batch.

Where other processes take the cores meanwhile, the threads of a step get less processor time than the step takes. Such a search
is made again later, and if it is never undisturbed, its last result serves but is not kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from engine.config import AUTO_SLOTS, EngineConfig, KvLayout, Tuning
from engine.errors import ModelFailed
from engine.log import log_stderr
from engine.tuning.lab import Choice, Lab, Prompt, Rows, Task
from engine.tuning.search import CELLS, ROWS_WITH_DRAFTS, Limits, Search, Steps
from engine.tuning.store import Attempts

_SHARE: Final = 1 / 3  # seconds for each second of a batch
_MOST_CREDIT: Final = 1.0
_LEAST_CPU: Final = 0.6  # processor time of each thread, over the time of the steps
_ATTEMPTS: Final = 4
_PAUSE_SECONDS: Final = 300.0
_LEAST_SEQUENCES: Final = 8


class Tuner:
    """The search in a lab; `new_steps` begins it. `result` is None until it has ended, and if it fails or does not fit.

    `is_disturbed`: other processes had the cores while the last search ran.
    """

    def __init__(
        self,
        lab: Lab,
        new_steps: Callable[[], Steps],
        attempts: Attempts | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._lab = lab
        self._new_steps = new_steps
        self._attempts = attempts
        self._steps = new_steps()
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._credit = 0.0
        self._next: Task | None = None
        self._num_attempts = 1
        self._waits_until = -math.inf
        self._seconds = self._cpu_seconds = 0.0
        self.is_running = True
        self.result: Tuning | None = None

    @property
    def is_disturbed(self) -> bool:
        return self._cpu_seconds < _LEAST_CPU * self._lab.threads * self._seconds

    @property
    def pause_seconds(self) -> float | None:
        """Seconds until an engine that is idle may go on; None where nothing is to do."""
        return max(0.0, self._waits_until - self._clock()) if self.is_running else None

    def allows_step(self, *, is_idle: bool) -> bool:
        """May the next task run now? Beside a batch only when that has computed for long enough."""
        return self.is_running and (is_idle or self._credit > 0) and self._clock() >= self._waits_until

    def earn(self, seconds: float) -> None:
        """Record the time of a step of a batch."""
        self._credit = min(self._credit + _SHARE * seconds, _MOST_CREDIT)

    def step(self) -> None:
        """Run the next task. Raises what the backend raises."""
        began, cpu_began = self._clock(), self._cpu_clock()
        try:
            if self._next is None:
                if self._attempts is not None:
                    self._attempts.begin()
                self._next = next(self._steps)
                return
            is_done = self._lab.compute(self._next)
            seconds = self._clock() - began
            if isinstance(self._next, (Prompt, Rows)):
                self._seconds += seconds
                self._cpu_seconds += self._cpu_clock() - cpu_began
            self._next = self._steps.send(seconds if is_done else math.inf)
        except StopIteration as end:
            self._end(end.value)
        finally:
            self._credit -= self._clock() - began

    def stop(self) -> None:
        """End the search for good."""
        self.is_running = False
        self._close()

    def _close(self) -> None:
        """Free the memory of the lab."""
        self._lab.close()
        if self._attempts is not None:
            self._attempts.end()

    def _end(self, result: Tuning | None) -> None:
        self._next = None
        if result is None or not self.is_disturbed or self._num_attempts == _ATTEMPTS:
            self.result = result
            self.stop()
            return
        self._close()
        self._num_attempts += 1
        self._waits_until = self._clock() + _PAUSE_SECONDS
        self._seconds = self._cpu_seconds = 0.0
        self._steps = self._new_steps()

    def fail(self, error: Exception) -> None:
        """End the search after an error: the engine serves with the settings that it has."""
        log_stderr(f"the speed of the model was not measured: {error}\n")
        self.stop()

    def apply(self, config: EngineConfig) -> bool:
        """Serve with these settings; return whether the memory of the decoder is a new one.

        Where they do not fit, `result` becomes None, and the memory is a new one with the settings of before.
        """
        try:
            return self._lab.apply(config)
        except ModelFailed as error:
            log_stderr(f"the fastest settings do not fit into memory: {error}\n")
            self.result = None
            return True


def new_tuner(lab: Lab, config: EngineConfig) -> Tuner:
    """The tuner of an engine with this configuration, which has not begun."""
    attempts = Attempts(Path(config.tuning_path)) if config.tuning_path else None
    return Tuner(lab, partial(tuning_steps, lab, config), attempts)


def tuning_steps(lab: Lab, config: EngineConfig) -> Steps:
    """The search for an engine with this configuration."""
    context = min(CELLS, config.context_size)
    most_slots = min(lab.most_slots, config.batch_tokens)
    sequences = min(lab.most_sequences(context), config.batch_tokens)
    slots = None if config.slots == AUTO_SLOTS else config.slots
    if sequences < min(_LEAST_SEQUENCES, most_slots if slots is None else max(slots, 1)):
        return None  # with so little memory left, what is found would not hold with more
    limits = Limits(
        tunable=config.tunable,
        context_size=config.context_size,
        sequences=sequences if slots is None else min(sequences, max(slots, ROWS_WITH_DRAFTS)),
        most_slots=most_slots,
        slots=slots,
        batch_tokens=config.batch_tokens,
        may_turn_flash_off=not config.cache_type_v.startswith("q"),
    )
    layout = KvLayout.UNIFIED if config.kv_layout is KvLayout.UNIFIED else KvLayout.SPLIT
    start = Choice(kv_layout=layout, flash_attention=config.flash_attention, ubatch_tokens=config.ubatch_tokens)
    return (yield from Search(limits, start).steps())
