"""Sampling: 32 rows of a large vocabulary on threads against one by one, and its share of the time of a real model.

Random weights give flat rows, of which most tokens are likely, so the share needs trained weights: MILLRACE_BENCH_GGUF is the
path of a model. It is measured in a process of its own, `python -m bench.sampling PATH`, with the environment of an engine:
threads that spin long after a decode would take the cores from those of the sampler.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.bare_loop import Bare
from engine.backends.llama.openmp import bound_spinning
from engine.backends.llama.sampling import ChainChooser
from engine.backends.llama.tokenizer import LlamaTokenizer
from engine.backends.sampler import Sampler
from engine.outputs.output_stream import OutputSpec
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import StepEntry
from engine.types import Priority, SamplingParams

Times = NDArray[np.float64]  # by the clock and of the processors

_ROWS: Final = 32
_ROUNDS: Final = 15
_SLOTS: Final = 16
_STEPS: Final = 180
_GREEDY: Final = SamplingParams(temperature=0)
_WAYS: Final[
    dict[str, tuple[float, dict[str, Any]]]
] = {  # the target of the ratio, and fields of a sequence; Any: such
    "logprobs: 2": (0.9, {"logprobs": 2}),
    "top_k 40, top_p 0.95 and min_p 0.05": (
        0.95,
        {"sampling": SamplingParams(top_k=40, top_p=0.95, min_p=0.05, seed=1)},
    ),
    "top_p 0.9": (0.95, {"sampling": SamplingParams(top_p=0.9, seed=1)}),
    "temperature 1": (0.95, {"sampling": SamplingParams(seed=1)}),
    "typical_p 0.9": (0.7, {"sampling": SamplingParams(typical_p=0.9, seed=1)}),
}


def _sequence(number: int, **given: Any) -> Sequence:  # Any: fields of a sequence
    return Sequence(
        **{
            "client": "bench",
            "request_id": str(number),
            "tokens": [1],
            "num_prompt_tokens": 1,
            "max_tokens": None,
            "sampling": _GREEDY,
            "spec": OutputSpec(),
            "ignore_eos": False,
            "stream": False,
            "priority": Priority.BATCH,
            **given,
        }
    )


class _Logits(Bare):
    """A model that computes a row for each of its slots."""

    def tokenizer(self) -> LlamaTokenizer:
        """The vocabulary of the model."""
        return LlamaTokenizer(self._model)


def _sampler(tokenizer: LlamaTokenizer, threads: int, sequences: list[Sequence]) -> Sampler:
    """A sampler with these sequences opened."""
    sampler = Sampler(partial(ChainChooser, num_vocab=tokenizer.num_vocab, context_size=64), tokenizer, threads)
    for sequence in sequences:
        sampler.open(sequence)
    return sampler


def compare_sampling(path: Path) -> tuple[float, float]:
    """Median milliseconds to sample a step: one by one, and on all cores."""
    threads = len(os.sched_getaffinity(0))
    model = _Logits(path, _ROWS, 64, threads)
    tokenizer = model.tokenizer()
    steps = []
    for number in (1, threads):
        sequences = [
            _sequence(each, sampling=SamplingParams(temperature=0.8, top_k=40, top_p=0.95, seed=each))
            for each in range(_ROWS)
        ]
        entries = [StepEntry(sequence, slot, 0, [slot + 300], 1) for slot, sequence in enumerate(sequences)]
        steps.append((_sampler(tokenizer, number, sequences), entries))
    logits = model.decode(steps[0][1])
    rng = np.random.default_rng(0)
    # random weights give flat rows, unlike real ones
    logits[:] = rng.standard_normal(logits.shape, dtype=np.float32) * 4
    times: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for each, (sampler, entries) in zip(times, steps, strict=True):
            began = time.perf_counter()
            sampler.sample(entries, logits)
            each.append(time.perf_counter() - began)
    model.close()
    return 1000 * statistics.median(times[0]), 1000 * statistics.median(times[1])


class Share(msgspec.Struct, frozen=True):
    """Speed with a parameter over that of greedy decoding, by the clock and by processor time."""

    name: str
    target: float
    by_clock: float
    by_processor: float


def large_vocabulary() -> list[Share]:
    """The shares that parameters leave of the speed, 16 sequences at once; none without MILLRACE_BENCH_GGUF."""
    path = os.environ.get("MILLRACE_BENCH_GGUF")
    if path is None:
        return []
    environment = dict(os.environ)
    bound_spinning(environment, is_bound_to_cores=False)
    command = [sys.executable, "-m", "bench.sampling", path]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(found.stdout, type=list[Share])


def _measure_shares(path: Path) -> list[Share]:
    """Generate texts, and sample their steps in each of the ways in turn: so all have the same texts and the same noise."""
    threads = len(os.sched_getaffinity(0))
    model = _Logits(path, _SLOTS, _STEPS + 32, threads)
    tokenizer = model.tokenizer()
    prompt = tokenizer.encode(" things that everybody should know about our town:", special=False, add_bos=False)
    texts = [[*tokenizer.encode(str(number), special=False, add_bos=True), *prompt] for number in range(_SLOTS)]
    computed = [0] * _SLOTS
    ways = []
    for given in ({}, *(given for _, given in _WAYS.values())):
        sequences = [_sequence(number, **given) for number in range(_SLOTS)]
        ways.append((_sampler(tokenizer, threads, sequences), sequences))
    decodes: list[Times] = []
    samples: list[list[Times]] = [[] for _ in ways]
    for step in range(_STEPS):
        sampler, sequences = ways[step % len(ways)]
        entries = [
            StepEntry(sequences[slot], slot, computed[slot], texts[slot][computed[slot] :], 1) for slot in range(_SLOTS)
        ]
        times = [_now()]
        logits = model.decode(entries)
        times.append(_now())
        results = sampler.sample(entries, logits)
        times.append(_now())
        for slot, result in enumerate(results):
            computed[slot] = len(texts[slot])
            texts[slot] += result.tokens[:1]
        if step >= len(ways):  # before, prompts and memory that is used for the first time
            decodes.append(times[1] - times[0])
            samples[step % len(ways)].append(times[2] - times[1])
    decode = np.median(decodes, axis=0)
    greedy, *others = (decode + np.median(each, axis=0) for each in samples)
    return [
        Share(name, target, *(greedy / other).tolist())
        for (name, (target, _)), other in zip(_WAYS.items(), others, strict=True)
    ]


def _now() -> Times:
    return np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_measure_shares(Path(sys.argv[1]))))
