"""The table of docs/models.md on quantisations and memory, recomputed with the engine's own sizing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from core.memory_sizes import format_bytes
from core.models.gguf.ggml_types import TENSOR_TYPES
from core.models.gguf.gguf_header import GgufHeader, Omitted, Tensor
from core.models.gguf.gguf_parser import Value
from core.settings import ROOT
from engine.config import EngineConfig, KvType
from engine.sizing import memory_need, slot_cost

PAGE = (ROOT / "docs" / "models.md").read_text()
TYPES: Final = {kind.name: kind for kind in TENSOR_TYPES.values()}
QUANTS: Final = ("Q4_K_M", "Q6_K", "Q8_0", "F16")


class Shape(NamedTuple):
    """Numbers of a model's metadata; all have 8 heads of keys and values."""

    layers: int
    width: int
    hidden: int
    heads: int
    head: int
    vocabulary: int
    is_tied: bool = False  # the output has no weights of its own


SHAPES: Final = {
    "1B": Shape(16, 2048, 8192, 32, 64, 128_256, is_tied=True),
    "4B": Shape(36, 2560, 9728, 32, 128, 151_936, is_tied=True),
    "8B": Shape(32, 4096, 14336, 32, 128, 128_256),
    "14B": Shape(40, 5120, 17408, 40, 128, 151_936),
    "32B": Shape(64, 5120, 25600, 64, 128, 151_936),
    "70B": Shape(80, 8192, 28672, 64, 128, 128_256),
}
_KV_HEADS: Final = 8


def header(shape: Shape, quant: str) -> GgufHeader:
    """The header of a model of this shape, with the mixture of formats that llama.cpp gives to a quantisation."""
    numbers = {
        "block_count": shape.layers,
        "embedding_length": shape.width,
        "feed_forward_length": shape.hidden,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": _KV_HEADS,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
    }
    metadata: dict[str, Value] = {"general.architecture": "llama", "tokenizer.ggml.tokens": Omitted(shape.vocabulary)}
    metadata |= {f"llama.{key}": value for key, value in numbers.items()}
    return GgufHeader((Path("model.gguf"),), 3, metadata, tuple(tensors(shape, quant)))


def tensors(shape: Shape, quant: str) -> Iterator[Tensor]:
    usual, more = ("Q4_K", "Q6_K") if quant == "Q4_K_M" else (quant, quant)
    last = "Q6_K" if quant == "Q4_K_M" else quant
    yield matrix("token_embd", shape.width, shape.vocabulary, last if shape.is_tied else usual)
    if not shape.is_tied:
        yield matrix("output", shape.width, shape.vocabulary, last)
    for layer in range(shape.layers):
        eighth = shape.layers // 8
        is_better = layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2
        better = more if is_better else usual
        queries, keys = shape.heads * shape.head, _KV_HEADS * shape.head
        for name, inputs, outputs, kind in (
            ("attn_q", shape.width, queries, usual),
            ("attn_k", shape.width, keys, usual),
            ("attn_v", shape.width, keys, better),
            ("attn_output", queries, shape.width, usual),
            ("ffn_gate", shape.width, shape.hidden, usual),
            ("ffn_up", shape.width, shape.hidden, usual),
            ("ffn_down", shape.hidden, shape.width, better),
        ):
            yield matrix(f"blk.{layer}.{name}", inputs, outputs, kind)


def matrix(name: str, inputs: int, outputs: int, kind: str) -> Tensor:
    return Tensor(f"{name}.weight", (inputs, outputs), TYPES[kind], 0)


def config(slots: int, context: int, kind: KvType = KvType.F16) -> EngineConfig:
    return EngineConfig(model="m", endpoint="", slots=slots, context_size=context, cache_type_k=kind, cache_type_v=kind)


def row(name: str) -> str:
    """The line of the table for a model of this size."""
    shape = SHAPES[name]
    weights = [format_bytes(memory_need(header(shape, quant), config(1, 4096)).weights_bytes) for quant in QUANTS]
    usual = header(shape, QUANTS[0])
    costs = [slot_cost(usual, config(1, 4096, kind)) for kind in (KvType.F16, KvType.Q8_0)]
    kv = " / ".join(format_bytes(cost.bytes_for(1024)) for cost in costs if cost is not None)
    needs = [
        format_bytes(memory_need(usual, config(*each)).total) for each in ((1, 4096), (8, 4096), (8, 8192), (32, 8192))
    ]
    return f"| {' | '.join([name, *weights, kv, *needs])} |"


@pytest.mark.parametrize("name", SHAPES)
def test_the_table_of_memory_has_the_numbers_of_the_engine(name: str) -> None:
    assert row(name) in PAGE.splitlines()


@pytest.mark.parametrize(
    ("name", "parameters", "file_bytes"), [("1B", 1.24e9, 0.81e9), ("8B", 8.03e9, 4.92e9), ("70B", 70.6e9, 42.5e9)]
)
def test_the_shapes_are_those_of_known_models(name: str, parameters: float, file_bytes: float) -> None:
    """Parameters and Q4_K_M files of Llama 3 of these sizes, as they are published."""
    found = header(SHAPES[name], "Q4_K_M")
    assert found.num_parameters == pytest.approx(parameters, rel=0.01)
    assert found.tensor_bytes == pytest.approx(file_bytes, rel=0.02)
