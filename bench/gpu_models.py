"""Models of 1 to 8 billion random weights, for speed on GPUs: Q4_0 blocks are written as they are, which takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray

from bench.models import BenchModel, filled_vocabulary, layer_matrices
from tools.bpe import byte_alphabet
from tools.write_gguf import Shape, model_writer

_KIND: Final = gguf.GGMLQuantizationType.Q4_0
_BLOCK: Final = 32  # weights in a block of Q4_0: a float16 scale, and 16 bytes of two weights each
_BLOCK_BYTES: Final = 18
_NUM_BLOCKS: Final = 999_983  # a prime, so that no two rows repeat each other
_SCALE: Final = np.float16(0.0043)  # the weights have a standard deviation of 0.02

MODELS: Final = {
    model.name: model
    for model in (
        BenchModel(
            name="small",
            shape=Shape(width=576, layers=8, heads=9, kv_heads=3, hidden=1536, context=4096),
            num_tokens=16_384,
        ),
        BenchModel(
            name="1B",
            shape=Shape(width=2048, layers=16, heads=32, kv_heads=8, hidden=8192, context=32_768),
            num_tokens=128_256,
        ),
        BenchModel(
            name="3B",
            shape=Shape(width=3072, layers=28, heads=24, kv_heads=8, hidden=8192, context=32_768),
            num_tokens=128_256,
        ),
        BenchModel(
            name="8B",
            shape=Shape(width=4096, layers=32, heads=32, kv_heads=8, hidden=14_336, context=32_768),
            num_tokens=128_256,
        ),
    )
}


def write_random_model(model: BenchModel, path: Path) -> None:
    """Write a Llama-architecture model of this shape; its output matrix is that of the embeddings."""
    ones, blocks = np.ones(model.shape.width, np.float32), _random_blocks()
    matrices = {name: _matrix(blocks, *size) for name, size in layer_matrices(model.shape).items()}
    words = [*byte_alphabet().values(), "to"]  # bytes, and one merge, which the format demands: prompts are token ids
    vocabulary = filled_vocabulary(words, [("t", "o")], model.num_tokens)
    with model_writer(path, model.name, model.shape, vocabulary) as writer:
        embeddings = _matrix(blocks, model.num_tokens, model.shape.width)
        writer.add_tensor("token_embd.weight", embeddings, raw_dtype=_KIND)
        writer.add_tensor("output_norm.weight", ones)
        for layer in range(model.shape.layers):
            for name, matrix in matrices.items():
                writer.add_tensor(f"blk.{layer}.{name}.weight", matrix, raw_dtype=_KIND)
            for name in ("attn_norm", "ffn_norm"):
                writer.add_tensor(f"blk.{layer}.{name}.weight", ones)


def _random_blocks() -> NDArray[np.uint8]:
    blocks = np.random.default_rng(0).integers(0, 256, (_NUM_BLOCKS, _BLOCK_BYTES), np.uint8)
    blocks[:, :2] = np.frombuffer(_SCALE.tobytes(), np.uint8)
    return blocks


def _matrix(blocks: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    size = rows * (columns // _BLOCK)
    return np.resize(blocks, (size, _BLOCK_BYTES)).reshape(rows, -1)
