"""Time to the first token of a chat while a batch holds every slot, against an idle engine."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Final

from bench.engine import RunningEngine, greedy, running_engine
from bench.models import BenchModel, random_prompts
from engine.process.client import EngineLost
from engine.types import Delta, Failed, Finished, Request, SamplingParams, TokenPrompt

_SLOTS: Final = 16
_PROMPT: Final = 64
_CHATS: Final = 9


class _FirstText:
    """A sink that records the time of the first text."""

    def __init__(self) -> None:
        self.at = 0.0
        self.ended = threading.Event()

    def on_delta(self, delta: Delta) -> None:
        """Record the time; runs in the thread of the client."""
        assert delta.text
        self.at = self.at or time.perf_counter()

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None:
        """Record the end; runs in the thread of the client."""
        assert isinstance(outcome, Finished), outcome
        self.at = self.at or time.perf_counter()
        self.ended.set()


class Discard:
    """A sink for the load that discards all output."""

    def on_delta(self, delta: Delta) -> None: ...

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None: ...


def seconds_to_first(engine: RunningEngine, prompts: list[list[int]], prefix: str) -> list[float]:
    """Seconds to the first text of a chat for each prompt, one after the other; `prefix` begins the ids of the requests."""
    seconds = []
    for number, prompt in enumerate(prompts):
        request = Request(
            id=f"{prefix}{number}",
            prompt=TokenPrompt(tokens=prompt),
            sampling=SamplingParams(temperature=0),
            max_tokens=8,
            ignore_eos=True,
            stream=True,
            tenant=f"{prefix}{number}",
        )
        first, began = _FirstText(), time.perf_counter()
        engine.client.submit(request, first)
        assert first.ended.wait(120), "the chat did not end"
        seconds.append(first.at - began)
        time.sleep(0.3)
    return seconds


def first_token_under_load(model: BenchModel, path: Path) -> tuple[float, float, float]:
    """Median seconds to the first token, idle and with all slots in use by a batch, and seconds of a full batch step."""
    chats = random_prompts(2 * _CHATS, _PROMPT, below=model.num_tokens - 8, seed=5)
    load = random_prompts(4 * _SLOTS, _PROMPT, below=model.num_tokens - 8, seed=6)
    with running_engine(path, slots=_SLOTS, context_size=512) as engine:
        seconds_to_first(engine, chats[:1], "warm")
        idle = statistics.median(seconds_to_first(engine, chats[:_CHATS], "idle"))
        seconds, _ = engine.run(greedy(load[:_SLOTS], 65))
        shorter, _ = engine.run(greedy(load[_SLOTS : 2 * _SLOTS], 1))
        step = (seconds - shorter) / 64
        for request in greedy(load, 400):
            engine.client.submit(request, Discard())
        time.sleep(3)
        busy = statistics.median(seconds_to_first(engine, chats[_CHATS:], "busy"))
    return idle, busy, step
