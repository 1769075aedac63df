"""The engine against the bare loop: the same model, the same prompts, alternating, the ratio of medians.

The model has random weights and the shape of a 135M Llama: its speed is real, what it says is not.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter
from typing import Final

import msgspec
import numpy as np

from bench.bare_loop import BareLoop
from engine.client import EngineClient, EngineLost
from engine.config import EngineConfig
from engine.messages import Delta, Failed, Finished, Priority, Request, Sampling, TokenPrompt
from tools.bpe import SPECIAL_TOKENS, Vocabulary, byte_alphabet
from tools.write_gguf import Shape, Weights, write_model

_SHAPE: Final = Shape(width=576, layers=30, heads=9, kv_heads=3, hidden=1536, context=32768)
_NUM_TOKENS: Final = 49_152
_PROMPT_TOKENS: Final = 64
_GENERATED: Final = 48
_CONTEXT: Final = 128
_PAIRS: Final = 3


def write_random_model(path: Path) -> None:
    """About 145 MB of Q8_0."""
    rng = np.random.default_rng(0)
    alphabet = list(byte_alphabet().values())
    filler = [f"token{number}" for number in range(_NUM_TOKENS - len(alphabet) - len(SPECIAL_TOKENS))]
    vocabulary = Vocabulary((*alphabet, *filler, *SPECIAL_TOKENS), ((alphabet[0], alphabet[1]),))
    kv_width = _SHAPE.width // _SHAPE.heads * _SHAPE.kv_heads
    shapes = {
        "attn_q": (_SHAPE.width, _SHAPE.width),
        "attn_k": (kv_width, _SHAPE.width),
        "attn_v": (kv_width, _SHAPE.width),
        "attn_output": (_SHAPE.width, _SHAPE.width),
        "ffn_gate": (_SHAPE.hidden, _SHAPE.width),
        "ffn_up": (_SHAPE.hidden, _SHAPE.width),
        "ffn_down": (_SHAPE.width, _SHAPE.hidden),
    }

    def random(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    ones = np.ones(_SHAPE.width, np.float32)
    weights: Weights = {"token_embd.weight": random(_NUM_TOKENS, _SHAPE.width), "output_norm.weight": ones}
    for layer in range(_SHAPE.layers):
        weights |= {f"blk.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        weights |= {f"blk.{layer}.attn_norm.weight": ones, f"blk.{layer}.ffn_norm.weight": ones}
    write_model(path, "random", _SHAPE, vocabulary, weights)


class _Countdown:
    """A sink for a run's requests; `done` is set with the last one."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.num_tokens = 0
        self.done = threading.Event()

    def on_delta(self, delta: Delta) -> None:
        """Nobody streams here."""

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None:
        """In the client's thread."""
        assert isinstance(outcome, Finished), outcome
        self.num_tokens += outcome.usage.completion_tokens
        self._left -= 1
        if not self._left:
            self.done.set()


def _run_engine(client: EngineClient, prompts: list[list[int]]) -> float:
    """Generated tokens per second, sent and received over the engine's sockets."""
    countdown = _Countdown(len(prompts))
    began = perf_counter()
    for number, prompt in enumerate(prompts):
        request = Request(
            id=str(number),
            prompt=TokenPrompt(tokens=prompt),
            sampling=Sampling(temperature=0),
            max_tokens=_GENERATED,
            ignore_eos=True,
            priority=Priority.BATCH,
        )
        client.submit(request, countdown)
    assert countdown.done.wait(600), "the engine did not finish"
    return countdown.num_tokens / (perf_counter() - began)


def compare(folder: Path, slots: int) -> float:
    """The engine's rate over the bare loop's."""
    path = folder / "random.gguf"
    if not path.exists():
        write_random_model(path)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(300, _NUM_TOKENS - 8, _PROMPT_TOKENS).tolist() for _ in range(max(4, 3 * slots))]
    threads = len(os.sched_getaffinity(0))
    endpoint = folder / f"engine-{slots}"
    config = EngineConfig(
        model="random",
        endpoint=str(endpoint),
        model_path=str(path),
        context_size=_CONTEXT,
        slots=slots,
        threads=threads,
    )
    process = subprocess.Popen([sys.executable, "-m", "engine.server", msgspec.json.encode(config).decode()])
    bare = BareLoop(str(path), slots, _CONTEXT, threads)
    client = EngineClient(str(endpoint), "bench")
    try:
        client.wait_ready(120)
        bare.run(prompts[:slots], 4)
        _run_engine(client, prompts[:slots])
        ratios = []
        for _ in range(_PAIRS):
            limit = bare.run(list(prompts), _GENERATED)
            ratios.append(_run_engine(client, prompts) / limit)
        return statistics.median(ratios)
    finally:
        client.close()
        process.terminate()
        process.wait()
        bare.close()
