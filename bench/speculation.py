"""Drafts from the prompt where they pay (`speculation: auto`): tokens per second of a single sequence with and without them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench.engine import RunningEngine, alternate, running_engine, salted
from bench.models import DEMO, random_prompts
from bench.tuning import measured
from engine.config import Switch
from engine.types import ChatPrompt, Request, SamplingParams, TokenPrompt
from tools.demo_data import Example
from tools.held_out_data import foreign_again, ticket

_NUMBER: Final = 24


def _rate(engine: RunningEngine, requests: list[Request]) -> float:
    """Tokens per second of requests that run one by one, as those of a single chat do."""
    tokens, total = 0, 0.0
    for request in salted(requests):
        seconds, countdown = engine.run([request])
        total += seconds
        tokens += countdown.num_tokens
    return tokens / total


def _demo_requests(maker: Callable[[random.Random], Example]) -> list[Request]:
    rng = random.Random(3)
    examples = [maker(rng) for _ in range(_NUMBER)]
    return [
        Request(
            id=str(number),
            prompt=ChatPrompt(messages=[dict(turn) for turn in example.turns]),
            sampling=SamplingParams(temperature=0),
            max_tokens=64,
        )
        for number, example in enumerate(examples)
    ]


def _random_requests(temperature: float, num_tokens: int) -> list[Request]:
    return [
        Request(
            id=str(number),
            prompt=TokenPrompt(tokens=prompt),
            sampling=SamplingParams(temperature=temperature, seed=number),
            max_tokens=96,
            ignore_eos=True,
        )
        for number, prompt in enumerate(random_prompts(4, 64, below=num_tokens - 8))
    ]


def compare_speculation(random_model: Path, num_tokens: int) -> dict[str, float]:
    """Ratio of tokens per second with and without speculation, by kind of text."""
    kinds = {
        "demo model, labels": (DEMO, _demo_requests(ticket)),
        "demo model, output that repeats the prompt": (DEMO, _demo_requests(foreign_again)),
        "random weights, greedy (falls into loops)": (random_model, _random_requests(0.0, num_tokens)),
        "random weights, sampled (never repeats)": (random_model, _random_requests(1.0, num_tokens)),
    }
    return {kind: _compare(path, requests) for kind, (path, requests) in kinds.items()}


def _compare(path: Path, requests: list[Request]) -> float:
    config: dict[str, Any] = {"slots": 1, "context_size": 512, "threads": len(os.sched_getaffinity(0))}
    tuning = measured(path, **config)
    with (
        running_engine(path, **config, speculation=Switch.AUTO, tuning=tuning) as speculating,
        running_engine(path, **config, speculation=Switch.OFF) as plain,
    ):
        for engine in (speculating, plain):
            _rate(engine, requests[:1])
        ours, theirs = alternate(lambda: _rate(speculating, requests), lambda: _rate(plain, requests))
    return ours / theirs
