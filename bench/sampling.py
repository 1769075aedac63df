"""Sampling by itself: 32 rows over a large vocabulary, on threads against one by one."""

from __future__ import annotations

import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from bench.bare_loop import Bare
from engine.backends.llama.sampling import ChainChooser
from engine.backends.llama.tokenizer import LlamaTokenizer
from engine.backends.sampler import Sampler
from engine.outputs.output_stream import OutputSpec
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import StepEntry
from engine.types import Priority, SamplingParams

_ROWS: Final = 32
_ROUNDS: Final = 15


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
        chooser = partial(ChainChooser, self._context, num_vocab=tokenizer.num_vocab, context_size=64)
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
    rows = list(range(_ROWS))
    times: list[tuple[float, float]] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        serial.sample(entries, logits, rows)
        between = time.perf_counter()
        threaded.sample(others, logits, rows)
        times.append((between - began, time.perf_counter() - between))
    model.close()
    return 1000 * statistics.median(a for a, _ in times), 1000 * statistics.median(b for _, b in times)
