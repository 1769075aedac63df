"""Models to measure speed: random weights in the shapes of real models, written once into `.bench/models`.

Their speed is real, their output is not. The vocabulary is a small one of ours, filled up to the real size. Files of the same
names in the folder MILLRACE_BENCH_MODELS are preferred, for machines that have models with a real vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from core.settings import ROOT
from tools.bpe import SPECIAL_TOKENS, Vocabulary, train
from tools.training_data import training_examples
from tools.write_gguf import Shape, Weights, write_model

FOLDER: Final = Path(".bench") / "models"
DEMO: Final = ROOT / "models" / "demo.gguf"
_LEARNED_TOKENS: Final = 1200


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchModel:
    """The shape of a model to measure."""

    name: str
    shape: Shape
    num_tokens: int

    def path(self) -> Path:
        """Path of the file; it is written on first use, which takes some seconds."""
        ready = Path(os.environ.get("MILLRACE_BENCH_MODELS", "")) / f"{self.name}.gguf"
        if ready.is_file():
            return ready
        path = FOLDER / f"{self.name}.gguf"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(self, path)
        return path


SMOL135: Final = BenchModel(
    name="smol135",
    shape=Shape(width=576, layers=30, heads=9, kv_heads=3, hidden=1536, context=32768),
    num_tokens=49_152,
)
QWEN05: Final = BenchModel(
    name="qwen05",
    shape=Shape(width=896, layers=24, heads=14, kv_heads=2, hidden=4864, context=32768),
    num_tokens=151_936,
)


def random_prompts(number: int, length: int, *, below: int, seed: int = 1) -> list[list[int]]:
    """Random token ids; no two prompts share a prefix."""
    rng = np.random.default_rng(seed)
    prompts: list[list[int]] = rng.integers(0, below, (number, length)).tolist()
    return prompts


def filled_vocabulary(words: Sequence[str], merges: Sequence[tuple[str, str]], number: int) -> Vocabulary:
    """A vocabulary of this size: the words, then tokens that occur in no text."""
    fillers = (f"token{index}" for index in range(number - len(words) - len(SPECIAL_TOKENS)))
    return Vocabulary((*words, *fillers, *SPECIAL_TOKENS), tuple(merges))


def layer_matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """The matrices of a layer: outputs and inputs by name."""
    kv_width = shape.width // shape.heads * shape.kv_heads
    return {
        "attn_q": (shape.width, shape.width),
        "attn_k": (kv_width, shape.width),
        "attn_v": (kv_width, shape.width),
        "attn_output": (shape.width, shape.width),
        "ffn_gate": (shape.hidden, shape.width),
        "ffn_up": (shape.hidden, shape.width),
        "ffn_down": (shape.width, shape.hidden),
    }


def _write(model: BenchModel, path: Path) -> None:
    print(f"writing {path} …", flush=True)
    partial = path.with_suffix(".part")
    write_model(
        partial, model.name, model.shape, _vocabulary(model.num_tokens), _weights(model.shape, model.num_tokens)
    )
    partial.rename(path)


def _vocabulary(number: int) -> Vocabulary:
    """Words of our own training data, filled up."""
    learned = train((example.answer for example in training_examples(20_000, seed=1)), _LEARNED_TOKENS)
    return filled_vocabulary(learned.tokens[: -len(SPECIAL_TOKENS)], learned.merges, number)


def _weights(shape: Shape, num_tokens: int) -> Weights:
    rng = np.random.default_rng(0)

    def random(*size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.standard_normal(size, dtype=np.float32) * np.float32(0.02)

    sizes = layer_matrices(shape)
    ones = np.ones(shape.width, np.float32)
    weights: Weights = {"token_embd.weight": random(num_tokens, shape.width), "output_norm.weight": ones}
    for layer in range(shape.layers):
        weights |= {f"blk.{layer}.{name}.weight": random(*size) for name, size in sizes.items()}
        weights |= {f"blk.{layer}.attn_norm.weight": ones, f"blk.{layer}.ffn_norm.weight": ones}
    return weights
