"""Chats while a batch holds every slot, against an idle engine: first token, twelve tokens, speed, and the loss of the batch."""

from __future__ import annotations

import itertools
import random
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from bench.engine import RunningEngine, running_engine
from bench.models import random_prompts
from engine.process.client import EngineLost
from engine.process.protocol import Tick
from engine.types import Delta, Failed, Finished, Priority, Request, SamplingParams, TokenPrompt

_ROUNDS: Final = 3
_CHATS: Final = 6  # in a round, of SHORT tokens
SHORT: Final = 12
_LONG: Final = 120
_PROMPT: Final = 64
_BATCH_SECONDS: Final = 20.0
PAUSE_SECONDS: Final = 2.0  # between the chats beside which the loss of the batch is measured
_CONTEXT: Final = 1280


class ChatTimes:
    """A sink that records the times of a chat's deltas."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ended = threading.Event()

    def on_delta(self, delta: Delta) -> None:  # noqa: ARG002
        """Record the time; runs in the thread of the client."""
        self.times.append(time.perf_counter())

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None:
        """Record the end; runs in the thread of the client."""
        assert isinstance(outcome, Finished), outcome
        self.times.append(time.perf_counter())
        self.ended.set()


class Discard:
    """A sink for the load that discards all output."""

    def on_delta(self, delta: Delta) -> None: ...

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None: ...


class EndlessBatch:
    """A batch that submits a line for each that ends: prompts of 200 to 1,000 tokens, 100 to 160 tokens generated."""

    def __init__(self, engine: RunningEngine, slots: int, num_tokens: int) -> None:
        self._engine, self._slots, self._num_tokens = engine, slots, num_tokens
        self._random = random.Random(3)
        self._numbers = itertools.count()
        self._running: set[str] = set()
        self._is_stopping = False
        self.num_lines = 0

    def start(self) -> None:
        """Begin two lines per slot, as a worker does, and wait until each slot had a line that ended."""
        self._is_stopping = False
        for _ in range(2 * self._slots):
            self._submit()
        enough = self.num_lines + self._slots
        while self.num_lines < enough:
            time.sleep(0.1)

    def stop(self) -> None:
        """Cancel all lines and wait for their ends."""
        self._is_stopping = True
        for request_id in list(self._running):
            self._engine.client.cancel(request_id)
        while self._running:
            time.sleep(0.02)

    def on_delta(self, delta: Delta) -> None:
        """Do nothing: lines are not streamed."""

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None:
        """Count the line and submit the next; runs in the thread of the client."""
        assert isinstance(outcome, Finished), outcome
        self._running.discard(outcome.request_id)
        self.num_lines += 1
        if not self._is_stopping:
            self._submit()

    def _submit(self) -> None:
        number = next(self._numbers)
        length = self._random.randrange(200, 1000)
        request = Request(
            id=f"line{number}",
            prompt=TokenPrompt(tokens=random_prompts(1, length, below=self._num_tokens, seed=number)[0]),
            sampling=SamplingParams(temperature=0),
            max_tokens=self._random.randrange(100, 160),
            ignore_eos=True,
            priority=Priority.BATCH,
        )
        self._running.add(request.id)
        self._engine.client.submit(request, self)


@dataclass(slots=True)
class Chats:
    """Seconds of short chats to their first and last tokens, and tokens per second of long ones."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideBatch:
    """Chats on an idle engine and beside a batch, and what the batch loses while a chat of SHORT tokens comes every two seconds.

    `lost` is a share of the batch's tokens per second; `step` the seconds of a step of the batch alone.
    """

    idle: Chats
    busy: Chats
    lost: float
    step: float

    def first(self, percentile: float) -> tuple[float, float]:
        """Seconds to the first token, idle and beside the batch."""
        return float(np.percentile(self.idle.first, percentile)), float(np.percentile(self.busy.first, percentile))

    def whole(self, percentile: float) -> tuple[float, float]:
        """Seconds of a chat of SHORT tokens, idle and beside the batch."""
        return float(np.percentile(self.idle.whole, percentile)), float(np.percentile(self.busy.whole, percentile))


def chats_beside_batch(path: Path, num_tokens: int, slots: int) -> BesideBatch:
    """Measure both in turns, so that noise of the machine affects both."""
    idle, busy = Chats(), Chats()
    alone, beside, steps = [], [], []
    with running_engine(path, slots=slots, context_size=_CONTEXT) as engine:
        batch = EndlessBatch(engine, slots, num_tokens)
        _chat(engine, num_tokens, SHORT)
        for _ in range(_ROUNDS):
            _measure(engine, num_tokens, idle)
            batch.start()
            rate, step = _batch_rate(engine, 0, num_tokens)
            alone.append(rate)
            steps.append(step)
            beside.append(_batch_rate(engine, int(_BATCH_SECONDS / PAUSE_SECONDS), num_tokens)[0])
            _measure(engine, num_tokens, busy)
            batch.stop()
    lost = 1 - statistics.median(beside) / statistics.median(alone)
    return BesideBatch(idle=idle, busy=busy, lost=lost, step=statistics.median(steps))


def seconds_to_first(engine: RunningEngine, prompts: list[list[int]], prefix: str) -> list[float]:
    """Seconds to the first text of a chat for each prompt, one after the other; `prefix` begins the ids of the requests."""
    seconds = []
    for number, prompt in enumerate(prompts):
        began, chat = time.perf_counter(), _submit_chat(engine, prompt, 8, f"{prefix}{number}")
        assert chat.ended.wait(120), "the chat did not end"
        seconds.append(chat.times[0] - began)
        time.sleep(0.3)
    return seconds


_numbers = itertools.count()


def _submit_chat(engine: RunningEngine, prompt: list[int], max_tokens: int, request_id: str) -> ChatTimes:
    request = Request(
        id=request_id,
        prompt=TokenPrompt(tokens=prompt),
        sampling=SamplingParams(temperature=0),
        max_tokens=max_tokens,
        ignore_eos=True,
        stream=True,
        tenant=request_id,
    )
    chat = ChatTimes()
    engine.client.submit(request, chat)
    return chat


def _chat(engine: RunningEngine, num_tokens: int, max_tokens: int) -> tuple[float, float, float]:
    """Seconds to the first token and to the last, and tokens per second between them."""
    number = next(_numbers)
    prompt = random_prompts(1, _PROMPT, below=num_tokens, seed=1_000_000 + number)[0]
    began, chat = time.perf_counter(), _submit_chat(engine, prompt, max_tokens, f"chat{number}")
    assert chat.ended.wait(600), "the chat did not end"
    first, last = chat.times[0], chat.times[-1]
    return first - began, last - began, (max_tokens - 1) / (last - first)


def _measure(engine: RunningEngine, num_tokens: int, chats: Chats) -> None:
    for number in range(_CHATS):
        first, whole, _ = _chat(engine, num_tokens, SHORT)
        chats.first.append(first)
        chats.whole.append(whole)
        time.sleep(0.1 + 0.07 * number)  # so that they come at different moments of a step
    chats.rates.append(_chat(engine, num_tokens, _LONG)[2])


def _batch_rate(engine: RunningEngine, chats: int, num_tokens: int) -> tuple[float, float]:
    """Tokens per second of the batch, with so many chats meanwhile, and seconds of a step."""
    began, before = time.perf_counter(), _tick(engine)
    for number in range(chats):
        time.sleep(max(0.0, began + number * PAUSE_SECONDS - time.perf_counter()))
        _chat(engine, num_tokens, SHORT)
    time.sleep(max(0.0, began + _BATCH_SECONDS - time.perf_counter()))
    seconds, after = time.perf_counter() - began, _tick(engine)
    generated = after.output_tokens - before.output_tokens - chats * SHORT
    return generated / seconds, seconds / max(1, after.num_steps - before.num_steps)


def _tick(engine: RunningEngine) -> Tick:
    tick = engine.client.tick
    assert tick is not None, "the engine is connected"
    return tick
