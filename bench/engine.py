"""The engine against the bare loop: the same model and prompts, in alternation, and the ratio of medians."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import msgspec

from bench.bare_loop import BareLoop
from bench.models import random_prompts
from engine.config import EngineConfig
from engine.process.client import EngineClient, EngineLost
from engine.types import Delta, Failed, Finished, Priority, Request, SamplingParams, TokenPrompt

_PAIRS: Final = 3
_GENERATED: Final = 48


class Countdown:
    """A sink for the requests of a run; `done` is set with the last one."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.num_tokens = 0
        self.num_cached = 0
        self.done = threading.Event()

    def on_delta(self, delta: Delta) -> None:
        """Do nothing: these requests are not streamed."""

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None:
        """Count the request; runs in the thread of the client."""
        assert isinstance(outcome, Finished), outcome
        self.num_tokens += outcome.usage.completion_tokens
        self.num_cached += outcome.usage.cached_tokens
        self._left -= 1
        if not self._left:
            self.done.set()


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine process and its client."""

    client: EngineClient
    process: subprocess.Popen[bytes]

    def run(self, requests: list[Request]) -> tuple[float, Countdown]:
        """Seconds until all requests have ended, sent and received over the sockets of the engine."""
        countdown = Countdown(len(requests))
        began = perf_counter()
        for request in requests:
            self.client.submit(request, countdown)
        assert countdown.done.wait(900), "the engine did not finish"
        return perf_counter() - began, countdown


@contextmanager
def running_engine(path: Path, **config: Any) -> Iterator[RunningEngine]:  # Any: fields of EngineConfig
    """Start an engine with a model, and stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
        values = {"model": "bench", "endpoint": folder, "model_path": str(path), **config}
        encoded = msgspec.json.encode(EngineConfig(**values)).decode()
        process = subprocess.Popen([sys.executable, "-m", "engine.process.server", encoded])
        client = EngineClient(folder, "bench")
        try:
            client.wait_ready(120)
            yield RunningEngine(client, process)
        finally:
            client.close()
            process.terminate()
            process.wait()


def greedy(prompts: list[list[int]], max_tokens: int, **given: Any) -> list[Request]:  # Any: fields of Request
    """Batch requests of a fixed length."""
    return [
        Request(
            id=str(number),
            prompt=TokenPrompt(tokens=prompt),
            sampling=SamplingParams(temperature=0),
            max_tokens=max_tokens,
            ignore_eos=True,
            priority=Priority.BATCH,
            **given,
        )
        for number, prompt in enumerate(prompts)
    ]


def alternate(first: Any, second: Any, pairs: int = _PAIRS) -> tuple[float, float]:  # Any: callables giving a rate
    """Medians of two rates, measured in turn so that noise of the machine affects both."""
    rates = [(first(), second()) for _ in range(pairs)]
    return statistics.median(a for a, _ in rates), statistics.median(b for _, b in rates)


def compare(
    num_tokens: int, path: Path, slots: int, *, shared: int = 0, own: int = 64, rounds: int = 3
) -> tuple[float, float]:
    """Tokens per second of the engine and of the bare loop, for `rounds` prompts per slot; `shared` tokens begin each prompt."""
    number, below = max(4, rounds * slots), num_tokens - 8
    start = random_prompts(1, shared, below=below, seed=2)[0] if shared else []
    prompts = random_prompts(number, own, below=below)
    threads, context_size = len(os.sched_getaffinity(0)), shared + own + _GENERATED + 16
    bare = BareLoop(path, slots, context_size, threads)
    requests = greedy([[*start, *prompt] for prompt in prompts], _GENERATED)
    try:
        with running_engine(path, slots=slots, context_size=context_size, threads=threads) as engine:
            engine.run(greedy(prompts[:slots], 2))
            bare.run(prompts[:slots], 2)

            def run_engine() -> float:
                seconds, countdown = engine.run(salted(requests))
                return countdown.num_tokens / seconds

            return alternate(run_engine, lambda: bare.run(prompts, _GENERATED, start))
    finally:
        bare.close()


_salt = iter(range(1 << 30))


def salted(requests: list[Request]) -> list[Request]:
    """Copies of the requests for another tenant each time, since the engine caches what the last run computed."""
    tenant = f"tenant-{next(_salt)}"
    return [msgspec.structs.replace(request, tenant=tenant) for request in requests]
