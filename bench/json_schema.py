"""Output by JSON schema, with and without forced tokens in one step, against a minimal Python loop and against llama-server.

The names of the five keys are longer than their values: most of the output is forced. Finished requests per second.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final

import llama_cpp as llama
import numpy as np
from llguidance import LLMatcher

from bench.bare_loop import Bare
from bench.engine import RunningEngine, alternate, running_engine, salted
from bench.llama_server import LlamaServer
from engine.backends.llama.grammar import grammar_tokenizer
from engine.backends.llama.tokenizer import LlamaTokenizer
from engine.scheduler.step import StepEntry
from engine.structured.bitmask import best_allowed
from engine.structured.schema import SEPARATORS
from engine.types import Constraint, ConstraintKind, Priority, Request, SamplingParams, TextPrompt

SLOTS: Final = 8
CONTEXT: Final = 256
SCHEMA: Final = {
    "type": "object",
    "properties": {
        "customer_category": {"enum": ["billing", "shipping", "technical", "account"]},
        "customer_priority": {"enum": ["low", "medium", "high"]},
        "requires_human_follow_up": {"type": "boolean"},
        "detected_language_code": {"enum": ["en", "de", "fr", "es"]},
        "estimated_resolution_hours": {"enum": [1, 4, 24, 72]},
    },
    "required": [
        "customer_category",
        "customer_priority",
        "requires_human_follow_up",
        "detected_language_code",
        "estimated_resolution_hours",
    ],
    "additionalProperties": False,
}


def questions(number: int) -> list[str]:
    """Prompts that share only their form."""
    return [
        f"Label ticket number {index}: my parcel has not arrived and I was charged twice. " for index in range(number)
    ]


class BareJson(Bare):
    """The lower limit of the time for this work: greedy continuous batching, masks by llguidance, and forced tokens appended."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path, SLOTS, CONTEXT, threads)
        self._tokenizer = LlamaTokenizer(self._model)
        vocabulary = grammar_tokenizer(self._tokenizer)
        schema = {**SCHEMA, "x-guidance": SEPARATORS}
        self._base = LLMatcher(vocabulary, LLMatcher.grammar_from_json_schema(json.dumps(schema)))

    def run(self, number: int) -> float:
        """Finished requests per second."""
        self.clear()
        waiting = [self._tokenizer.encode(text, special=False, add_bos=True) for text in reversed(questions(number))]
        lanes: list[dict[str, Any] | None] = [None] * SLOTS  # Any: tokens, a position and a matcher
        done, began = 0, time.perf_counter()
        while done < number:
            for slot, lane in enumerate(lanes):
                if lane is None and waiting:
                    llama.llama_memory_seq_rm(self._memory, slot, -1, -1)
                    lanes[slot] = {"todo": waiting.pop(), "at": 0, "matcher": self._base.deep_copy()}
            entries = [
                StepEntry(None, slot, lane["at"], lane["todo"], 1)  # type: ignore[arg-type]
                for slot, lane in enumerate(lanes)
                if lane is not None
            ]
            for entry, logits in zip(entries, self.decode(entries), strict=True):
                lane = lanes[entry.slot]
                assert lane is not None
                lane["at"] += len(lane["todo"])
                lane["todo"] = self._next(lane["matcher"], logits)
                if lane["matcher"].is_stopped() or self._tokenizer.is_end(lane["todo"][0]):
                    lanes[entry.slot] = None
                    done += 1
        return number / (time.perf_counter() - began)

    def _next(self, matcher: LLMatcher, logits: Any) -> list[int]:  # Any: a row of floats
        mask = np.empty((len(logits) + 31) // 32, np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        token = best_allowed(logits, mask)
        matcher.consume_token(token)
        forced = [] if matcher.is_stopped() else matcher.compute_ff_tokens()
        if forced:
            matcher.consume_tokens(forced)
        return [token, *forced]


def _requests(number: int) -> list[Request]:
    constraint = Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(SCHEMA))
    return [
        Request(
            id=str(index),
            prompt=TextPrompt(text=text),
            sampling=SamplingParams(temperature=0),
            constraint=constraint,
            priority=Priority.BATCH,
        )
        for index, text in enumerate(questions(number))
    ]


def _rate(engine: RunningEngine, number: int) -> float:
    seconds, _ = engine.run(salted(_requests(number)))
    return number / seconds


def compare_json(path: Path, number: int) -> dict[str, float]:
    """Ratios of finished requests per second: over no jumps, over the bare loop, and over llama-server if there is one."""
    threads = len(os.sched_getaffinity(0))
    config = {"slots": SLOTS, "spare_slots": 1, "context_size": CONTEXT, "threads": threads}
    ratios = {}
    with running_engine(path, **config) as engine:
        _rate(engine, SLOTS)
        with running_engine(path, **config, jump_forward=False) as stepping:
            _rate(stepping, SLOTS)
            with_jumps, without = alternate(lambda: _rate(engine, number), lambda: _rate(stepping, number))
            ratios["without jumps"] = with_jumps / without
        bare = BareJson(path, threads)
        bare.run(SLOTS)
        ours, limit = alternate(lambda: _rate(engine, number), lambda: bare.run(number))
        ratios["bare loop"] = ours / limit
        bare.close()
        if (server := LlamaServer.find()) is not None:
            fewer = max(SLOTS, number // 2)
            with server.running(path, SLOTS, CONTEXT, threads) as running:
                bodies = [
                    {"prompt": text, "json_schema": SCHEMA, "n_predict": CONTEXT - 40, "temperature": 0}
                    for text in questions(fewer)
                ]
                running.run(bodies[:2])
                ours, theirs = alternate(lambda: _rate(engine, fewer), lambda: fewer / running.run(bodies))
                ratios["llama-server"] = ours / theirs
    return ratios
