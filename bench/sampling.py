"""Sampling: 32 rows of a large vocabulary on threads against one by one, and its share of the time of a real model.

Random weights give flat rows, of which most tokens are likely, so the share needs trained weights: MILLRACE_BENCH_GGUF is the
path of a model.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from bench.bare_loop import Bare
from bench.engine import RunningEngine, running_engine, salted
from engine.backends.llama.sampling import ChainChooser
from engine.backends.llama.tokenizer import LlamaTokenizer
from engine.backends.sampler import Sampler
from engine.outputs.output_stream import OutputSpec
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import StepEntry
from engine.types import Priority, Request, SamplingParams, TextPrompt

_ROWS: Final = 32
_ROUNDS: Final = 15
_SLOTS: Final = 16
_TOKENS: Final = 48
_PAIRS: Final = 3
_SHARES: Final[
    dict[str, tuple[float, dict[str, Any]]]
] = {  # the target of the ratio, and fields of a request; Any: such
    "logprobs: 2, over the same without": (0.9, {"logprobs": 2}),
    "top_p 0.9, over greedy": (0.95, {"sampling": SamplingParams(top_p=0.9, seed=1)}),
    "top_k 64 and top_p 0.95, over greedy": (0.95, {"sampling": SamplingParams(top_k=64, top_p=0.95, seed=1)}),
    "temperature 1, over greedy": (0.95, {"sampling": SamplingParams(seed=1)}),
}


def _sequence(number: int) -> Sequence:
    return Sequence(
        client="bench",
        request_id=str(number),
        tokens=[1],
        num_prompt_tokens=1,
        max_tokens=None,
        sampling=SamplingParams(temperature=0.8, top_k=40, top_p=0.95, seed=number),
        spec=OutputSpec(),
        ignore_eos=False,
        stream=False,
        priority=Priority.BATCH,
    )


class _Logits(Bare):
    """A model that has computed a row for each of its slots."""

    def sampler(self, threads: int) -> tuple[Sampler, list[StepEntry]]:
        """A sampler with all sequences opened, and their entries."""
        tokenizer = LlamaTokenizer(self._model)
        chooser = partial(ChainChooser, num_vocab=tokenizer.num_vocab, context_size=64)
        sampler = Sampler(chooser, tokenizer, threads)
        entries = [StepEntry(_sequence(number), number, 0, [number + 300], 1) for number in range(_ROWS)]
        for entry in entries:
            sampler.open(entry.sequence)
        return sampler, entries


def compare_sampling(path: Path) -> tuple[float, float]:
    """Median milliseconds to sample a step: one by one, and on all cores."""
    threads = len(os.sched_getaffinity(0))
    model = _Logits(path, _ROWS, 64, threads)
    serial, entries = model.sampler(1)
    threaded, others = model.sampler(threads)
    logits = model.decode(entries)
    rng = np.random.default_rng(0)
    logits[:] = (
        rng.standard_normal(logits.shape, dtype=np.float32) * 4
    )  # random weights give flat rows, unlike real ones
    times: list[tuple[float, float]] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        serial.sample(entries, logits)
        between = time.perf_counter()
        threaded.sample(others, logits)
        times.append((between - began, time.perf_counter() - between))
    model.close()
    return 1000 * statistics.median(a for a, _ in times), 1000 * statistics.median(b for _, b in times)


@dataclass(frozen=True, slots=True)
class Share:
    """Speed with a parameter over that without, by the clock and by the processor time of the engine; medians of pairs."""

    name: str
    target: float
    by_clock: float
    by_processor: float


def large_vocabulary() -> list[Share]:
    """The shares that parameters leave of the speed, 16 sequences at once; none without MILLRACE_BENCH_GGUF."""
    path = os.environ.get("MILLRACE_BENCH_GGUF")
    if path is None:
        return []
    threads = len(os.sched_getaffinity(0))
    with running_engine(Path(path), slots=_SLOTS, context_size=256, threads=threads) as engine:
        _seconds(engine, {})
        return [_share(engine, name, *_SHARES[name]) for name in _SHARES]


def _share(engine: RunningEngine, name: str, target: float, given: dict[str, Any]) -> Share:  # Any: fields of a request
    pairs = [(_seconds(engine, {}), _seconds(engine, given)) for _ in range(_PAIRS)]
    clock, processor = (
        statistics.median(without[kind] / with_it[kind] for without, with_it in pairs) for kind in (0, 1)
    )
    return Share(name, target, clock, processor)


def _seconds(engine: RunningEngine, given: dict[str, Any]) -> tuple[float, float]:  # Any: fields of a request
    """Seconds by the clock and of processor time."""
    requests = [
        Request(
            id=str(number),
            prompt=TextPrompt(text=f"{number} things that everybody should know about our town:"),
            max_tokens=_TOKENS,
            ignore_eos=True,
            priority=Priority.BATCH,
            **{"sampling": SamplingParams(temperature=0), **given},
        )
        for number in range(_SLOTS)
    ]
    process = psutil.Process(engine.process.pid)
    before = process.cpu_times()
    seconds, _ = engine.run(salted(requests))
    after = process.cpu_times()
    return seconds, after.user + after.system - before.user - before.system
