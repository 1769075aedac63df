"""Search: decides what to measure next, and which settings are the fastest.

    1  memory layout and flash attention    seconds of a usual request: its prompt, and its part of steps of 16 sequences
    2  sequences side by side               tokens per second over their number: the most of those that are nearly fastest
    3  tokens that are computed at a time   tokens per second of a prompt, where one step of them does not take long

A setting of the user is fixed; the others begin with llama.cpp's usual ones, which another must beat clearly, since no two
measurements are equal. Noise only adds time, so the shortest of some repetitions counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from engine.config import KvLayout, Switch, Tuning
from engine.tuning.lab import Choice, Prompt, Rows, SetUp, Spread, Task

LONGEST_SECONDS: Final = 0.25  # of a step: a chat that comes meanwhile waits for its end
_BUDGET_SECONDS: Final = 30.0
_DEPTH: Final = 512  # tokens that each sequence has when it decodes: a part of its context, and at most so many
_CONTEXT_PART: Final = 8
_MARGIN: Final = 256  # cells for tokens that the memory cannot forget
CELLS: Final = _DEPTH + _MARGIN
ROWS_WITH_DRAFTS: Final = 16  # of one sequence: what its drafts cost has to be known, too
_PROBE: Final = 16
_USUAL_PROMPT, _USUAL_ANSWER = 256, 64
_GAIN: Final = 0.05  # of another layout, which lengths of texts may turn into a loss
_FLASH_GAIN: Final = 0.15  # without flash attention short texts of small models are slower, longer ones faster
_UBATCH_GAIN: Final = 0.03
_NEARLY: Final = 0.98  # of the most tokens per second: then more sequences win, since prompts run beside their answers
_FILL_SECONDS: Final = 4.0  # of a slow device, which then decodes after fewer tokens
_REPEAT_SECONDS: Final = 0.06
_MOST_REPEATS, _LEAST_REPEATS = 12, 3
_LONG_SECONDS: Final = 1.0  # of repetitions: noise is small beside them
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_BETWEEN: Final = (3, 6, 12, 24, 48, 96)
_UBATCHES: Final = (256, 512, 1024, 2048)
_FIRST_PROMPT: Final = 16

Steps = Generator[Task, float, Tuning | None]
_Steps = Generator[Task, float, float]


class _Probe(NamedTuple):
    """Seconds of a usual request, and of the steps by which it was computed."""

    seconds: float
    rows: float
    prompts: dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be tried: the names of the settings that are free, tokens of a sequence, and the most sequences.

    `slots` is the number of the user; None leaves it free. `most_slots` are the result where more were faster as far as could be
    measured: the lab may have less room than the engine.
    """

    tunable: Collection[str]
    context_size: int
    sequences: int
    most_slots: int
    slots: int | None
    batch_tokens: int
    may_turn_flash_off: bool = True

    @property
    def depth(self) -> int:
        """Tokens that a sequence has before it decodes."""
        return min(_DEPTH, max(2 * _FIRST_PROMPT, self.context_size // _CONTEXT_PART))

    @property
    def cells(self) -> int:
        """Room of a sequence."""
        return self.depth + _MARGIN

    @property
    def probe(self) -> int:
        """Sequences of a step with which layouts are compared."""
        return min(_PROBE, self.slots or _PROBE, self.sequences)


class Search:
    """One search. `steps` yields tasks and takes their seconds: infinity for what cannot be done."""

    def __init__(self, limits: Limits, start: Choice) -> None:
        self._limits = limits
        self._start = start
        self._spent = 0.0
        self._prompts: dict[int, float] = {}
        self._rows: dict[int, float] = {}
        self._depth = math.inf

    def steps(self) -> Steps:
        """Measure, and return the result; None where nothing could be measured."""
        choice = yield from self._compare_layouts()
        if not self._rows:
            return None
        yield from self._measure_rows(choice)
        if "ubatch_tokens" in self._limits.tunable:
            choice = yield from self._compare_ubatches(choice)
        return Tuning(
            slots=self._best_slots(),
            kv_layout=choice.kv_layout,
            flash_attention=choice.flash_attention,
            ubatch_tokens=choice.ubatch_tokens,
            row_seconds=sorted(self._rows.items()),
            prompt_seconds=sorted(self._prompts.items()),
            depth=int(self._depth),
            seconds=round(self._spent, 3),
        )

    def _compare_layouts(self) -> Generator[Task, float, Choice]:
        """Choose a layout. The usual one is measured first and last, since an engine that starts has other things to do."""
        found: dict[Choice, _Probe] = {}
        others = list(self._other_layouts())
        for choice in [self._start, *others, self._start] if others else [self._start]:
            if found and self._is_over:
                break
            prompts: dict[int, float] = {}
            rows = yield from self._probe(choice, self._limits.probe, prompts)
            if math.isinf(rows):
                continue
            seconds = _USUAL_PROMPT * _per_token(prompts) + _USUAL_ANSWER * rows / self._limits.probe
            if choice not in found or seconds < found[choice].seconds:
                found[choice] = _Probe(seconds, rows, prompts)
        best = min(found, key=lambda choice: self._handicap(choice) * found[choice].seconds, default=self._start)
        if best in found:
            self._rows, self._prompts = {self._limits.probe: found[best].rows}, found[best].prompts
        return best

    def _handicap(self, choice: Choice) -> float:
        """Return the factor on the seconds of a layout: those of the usual one count as they are."""
        if choice == self._start:
            return 1.0
        return 1 / (1 - (_GAIN if choice.flash_attention is self._start.flash_attention else _FLASH_GAIN))

    def _other_layouts(self) -> Iterator[Choice]:
        """Yield the layouts to compare with the usual one."""
        tunable = self._limits.tunable
        if "kv_layout" in tunable and self._limits.probe > 1:
            is_split = self._start.kv_layout is not KvLayout.UNIFIED
            yield replace(self._start, kv_layout=KvLayout.UNIFIED if is_split else KvLayout.SPLIT)
        if "flash_attention" in tunable and self._limits.may_turn_flash_off:
            yield replace(self._start, flash_attention=Switch.OFF)

    def _probe(self, choice: Choice, sequences: int, prompts: dict[int, float]) -> _Steps:
        """Return the seconds of a step of so many sequences; record those of prompts by their tokens."""
        if math.isinf((yield from self._fill(choice, sequences, prompts))):
            return math.inf
        return (yield from self._least(Rows(sequences)))

    def _fill(self, choice: Choice, sequences: int, prompts: dict[int, float]) -> _Steps:
        """Give all sequences their first tokens, in growing pieces; return infinity if that cannot be done."""
        seconds = yield from self._run(SetUp(choice=choice, sequences=sequences, cells=self._limits.cells))
        if math.isfinite(seconds):
            seconds = yield from self._run(Prompt(_FIRST_PROMPT))  # the first step also makes buffers
        done, size, began = _FIRST_PROMPT, _FIRST_PROMPT, self._spent
        while math.isfinite(seconds) and done + size <= self._limits.depth:
            seconds = yield from self._run(Prompt(size))
            done += size
            prompts[size] = min(seconds, prompts.get(size, math.inf))
            is_larger_possible = 2 * size <= self._limits.batch_tokens and done + 4 * size <= self._limits.depth
            if 2 * seconds <= LONGEST_SECONDS and is_larger_possible:
                size *= 2  # the largest pieces are computed at least twice
            if self._is_over or self._spent - began > _FILL_SECONDS:
                break
        self._depth = min(self._depth, done)
        if math.isfinite(seconds) and sequences > 1:
            seconds = yield from self._run(Spread())
        return seconds if prompts else math.inf

    def _measure_rows(self, choice: Choice) -> Generator[Task, float, None]:
        most = self._limits.sequences
        if self._is_over or math.isinf((yield from self._fill(choice, most, {}))):
            return
        for number in dict.fromkeys((1, most, *_SIZES, *_BETWEEN)):
            if number > most or self._is_over:
                continue
            seconds = yield from self._least(Rows(number))
            if math.isfinite(seconds):
                self._rows[number] = seconds

    def _best_slots(self) -> int:
        if self._limits.slots is not None:
            return self._limits.slots
        rates = {number: number / seconds for number, seconds in self._rows.items()}
        enough = _NEARLY * max(rates.values())
        best = max(number for number, rate in rates.items() if rate >= enough)
        return best if best < max(rates) else max(best, self._limits.most_slots)

    def _compare_ubatches(self, choice: Choice) -> Generator[Task, float, Choice]:
        """Choose the fewest tokens at a time that compute prompts nearly as fast as any, among those that do not take long."""
        per_token = _per_token(self._prompts)
        most = min(self._limits.batch_tokens, self._limits.context_size)
        found: dict[int, float] = {}
        for tokens in _UBATCHES:
            if tokens * per_token > LONGEST_SECONDS or tokens > most or self._is_over:
                continue
            tried = replace(choice, ubatch_tokens=tokens)
            if math.isinf((yield from self._run(SetUp(choice=tried, sequences=1, cells=tokens)))):
                continue
            seconds = yield from self._least(Prompt(tokens))
            if math.isfinite(seconds):
                found[tokens], per_token = seconds, min(per_token, seconds / tokens)
        rates = {tokens: tokens / seconds for tokens, seconds in found.items()}
        best = choice.ubatch_tokens
        if best in rates and rates[best] < (1 - _UBATCH_GAIN) * max(rates.values()):
            best = max(rates, key=lambda tokens: rates[tokens])
        if best in found:
            self._prompts[best] = found[best]
        return replace(choice, ubatch_tokens=best)

    @property
    def _is_over(self) -> bool:
        return self._spent > _BUDGET_SECONDS

    def _least(self, task: Task) -> _Steps:
        """The shortest of some repetitions, after one that does not count."""
        least = yield from self._run(task)
        if math.isinf(least):
            return least
        least, total, number = math.inf, 0.0, 0
        while number < _LEAST_REPEATS or (total < _REPEAT_SECONDS and number < _MOST_REPEATS - 1):
            seconds = yield from self._run(task)
            least, total, number = min(least, seconds), total + seconds, number + 1
            if self._is_over or total > _LONG_SECONDS:
                break
        return least

    def _run(self, task: Task) -> _Steps:
        seconds = yield task
        if math.isfinite(seconds):
            self._spent += seconds
        return seconds


def _per_token(prompts: dict[int, float]) -> float:
    """Seconds of a token in the pieces that are fastest."""
    return min(seconds / size for size, seconds in prompts.items())
