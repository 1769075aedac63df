"""Memory of an engine before it starts, from the header of its GGUF file and its configuration.

    weights  the tensors of the file, and of its adapters
    kv       sequences x cells x (bytes of keys + bytes of values), summed over the layers, and the states of recurrent layers
    compute  the largest step: masks, and the activations or the logits; rows of logits; and the process itself

A sequence has a slot or a spare slot. Its cells are `context_size`, rounded up to 256; in a layer with a window, no more than
the window and a micro-batch. Sequences of a unified memory share the cells of `slots` contexts. Tests hold weights and kv to
the bytes that llama.cpp reports, and compute to its buffers within a margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from core.models.gguf.ggml_types import TENSOR_TYPES, TensorType
from core.models.gguf.gguf_header import GgufHeader
from engine.backends.memory import CELLS, CPU_SHARE, GPU_SHARE, SlotCost, slots_that_fit, spare_slots
from engine.config import AUTO_SLOTS, EXTRA_ROWS, EngineConfig, KvLayout, KvType, Switch
from engine.layer_memory import LayerMemory, ModelMemory, model_memory

_TYPES: Final = {kind.name: kind for kind in TENSOR_TYPES.values()}
_FLOAT: Final = 4
# Bytes around keys, values and states when llama.cpp writes a sequence: of a token, of its caches, of their layers.
_CELL_BYTES, _STATE_BYTES, _CACHE_BYTES, _RECURRENT_BYTES, _LAYER_BYTES = 12, 8, 16, 20, 24
_MAX_INPUTS, _MAX_RECURRENT_INPUTS = 128, 32  # as `engine.backends.llama.context` sets them
_PROCESS_BYTES: Final = 68 << 20  # Python, numpy and llama.cpp
_TOKEN_BYTES: Final = 600  # of a vocabulary's token, in llama.cpp and in the tables for constraints


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes that an engine needs on its device."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def memory_need(header: GgufHeader, config: EngineConfig) -> MemoryNeed:
    """Estimate the memory of an engine with these slots. Raises GgufError for metadata that no model has.

    AUTO_SLOTS count as one slot: replace them by `chosen_slots` first.
    """
    config = msgspec.structs.replace(config, slots=max(1, config.slots))
    memory = model_memory(header)
    contexts = _contexts(header, memory, config)
    return MemoryNeed(
        weights_bytes=header.tensor_bytes + sum(_file_bytes(adapter.path) for adapter in config.lora),
        kv_bytes=sum(_kv_bytes(memory, config, context) for context in contexts),
        compute_bytes=process_bytes(header) + sum(_step_bytes(header, memory, config, each) for each in contexts),
    )


def process_bytes(header: GgufHeader) -> int:
    """Bytes of an engine process without weights, contexts and steps: measured, as resident memory."""
    return _PROCESS_BYTES + _TOKEN_BYTES * header.num_tokens


def chosen_slots(header: GgufHeader, config: EngineConfig, *, free_bytes: int, on_gpu: bool = False) -> int:
    """The slots of an engine that starts with this much free memory; on a GPU, free beside the weights."""
    if config.slots != AUTO_SLOTS:
        return config.slots
    memory_bytes = int(free_bytes * (GPU_SHARE if on_gpu else CPU_SHARE))
    return slots_that_fit(slot_cost(header, config), config, memory_bytes=memory_bytes, on_gpu=on_gpu)


def slot_cost(header: GgufHeader, config: EngineConfig) -> SlotCost | None:
    """The cost of a sequence, as `measure_slot` measures it on the loaded model; None for an encoder."""
    memory = model_memory(header)
    if not memory.layers:
        return None
    attending = [layer for layer in memory.layers if layer.keys]
    recurrent = [layer for layer in memory.layers if layer.state]
    num_caches = len({layer.is_windowed for layer in attending})
    frame = _STATE_BYTES + _CACHE_BYTES * num_caches + _LAYER_BYTES * (len(attending) + len(recurrent))
    return SlotCost(
        bytes_per_token=sum(_token_bytes(layer, memory, config) for layer in attending) + _CELL_BYTES * num_caches,
        bytes_per_slot=sum(_FLOAT * layer.state for layer in recurrent) + frame + _RECURRENT_BYTES * bool(recurrent),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    """A context of llama.cpp: room for `num_tokens` tokens of `num_sequences`, `ubatch` of them computed at a time."""

    num_tokens: int
    num_sequences: int
    is_unified: bool
    ubatch: int
    num_outputs: int  # rows of logits in a step

    @property
    def streams(self) -> int:
        return 1 if self.is_unified else self.num_sequences

    def cells(self, window: int = 0) -> int:
        """Tokens of a stream."""
        size = _padded(_padded(self.num_tokens) // self.streams)
        if not window:
            return size
        sequences = self.num_sequences if self.is_unified else 1
        return _padded(min(size, window * sequences + self.ubatch))


def _contexts(header: GgufHeader, memory: ModelMemory, config: EngineConfig) -> list[_Context]:
    """The contexts of an engine: one to decode, unless the model is an encoder, and one to embed."""
    contexts = []
    if memory.layers:
        num_sequences = config.slots + spare_slots(config)
        is_unified = config.kv_layout is KvLayout.UNIFIED
        num_tokens = config.context_size * (config.slots if is_unified else num_sequences)
        contexts.append(
            _Context(
                num_tokens=num_tokens,
                num_sequences=num_sequences,
                is_unified=is_unified,
                ubatch=min(num_tokens, config.batch_tokens, config.ubatch_tokens),
                num_outputs=min(num_sequences + EXTRA_ROWS, config.batch_tokens),
            )
        )
    if config.embeddings:
        most = min(config.context_size, header.integer("{}.context_length") or config.context_size)
        step = min(config.prefill_tokens, config.ubatch_tokens, most)
        is_recurrent = any(layer.state for layer in memory.layers)
        tokens = step if memory.layers else most
        inputs = min(_MAX_RECURRENT_INPUTS if is_recurrent else _MAX_INPUTS, tokens)
        contexts.append(
            _Context(
                num_tokens=most + step if memory.layers else most,
                num_sequences=inputs,
                is_unified=True,
                ubatch=_multiple(tokens, inputs),
                num_outputs=0,
            )
        )
    return contexts


def _kv_bytes(memory: ModelMemory, config: EngineConfig, context: _Context) -> int:
    total = 0
    for layer in memory.layers:
        cells = context.cells(memory.window if layer.is_windowed else 0) if layer.keys else 0
        total += cells * context.streams * _token_bytes(layer, memory, config)
        total += context.num_sequences * layer.state * _FLOAT
    return total


def _token_bytes(layer: LayerMemory, memory: ModelMemory, config: EngineConfig) -> int:
    """Bytes of the keys and values of a token. Without flash attention, all layers have the largest values."""
    values = layer.values
    if values and config.flash_attention is Switch.OFF:
        values = max(each.values for each in memory.layers)
    return _type(config.cache_type_k).row_bytes(layer.keys) + _type(config.cache_type_v).row_bytes(values)


def _step_bytes(header: GgufHeader, memory: ModelMemory, config: EngineConfig, context: _Context) -> int:
    """Bytes of the masks, of the larger of a layer's activations and the logits, and of the rows that are read."""
    width = header.integer("{}.embedding_length")
    tokens = _multiple(context.ubatch, context.streams)
    is_flash = config.flash_attention is not Switch.OFF
    heads = header.integer("{}.attention.head_count")
    windows = {memory.window if layer.is_windowed else 0 for layer in memory.layers if layer.keys}
    cells = [context.cells(window) for window in windows]
    masks = sum(cells) * tokens * (2 if is_flash else _FLOAT)
    scores = 0 if is_flash else max(cells, default=0) * tokens * heads * _FLOAT
    activations = tokens * _FLOAT * (4 * width + 3 * _hidden(header, width)) + scores
    logits = context.num_outputs * header.num_tokens * _FLOAT
    rows = context.num_sequences * header.num_tokens if context.num_outputs else context.ubatch * width
    states = sum(layer.state for layer in memory.layers[:1]) * context.num_sequences * _FLOAT
    return masks + max(activations, logits) + rows * _FLOAT + states


def _hidden(header: GgufHeader, width: int) -> int:
    """Numbers of a token inside a layer, of all experts that compute it."""
    experts = header.integer("{}.expert_used_count")
    of_experts = experts * (header.integer("{}.expert_feed_forward_length") + width) if experts else 0
    return max(header.integer("{}.feed_forward_length"), of_experts, header.integer("{}.ssm.inner_size") * 2)


def _file_bytes(path: str) -> int:
    return Path(path).stat().st_size if Path(path).is_file() else 0


def _type(kind: KvType) -> TensorType:
    return _TYPES[kind.upper()]


def _padded(size: int) -> int:
    return _multiple(size, CELLS)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of
