"""Memory of an engine of the backend transformers before it starts, from the headers of its folder and its configuration.

weights  the numbers of all tensors, in the format in which they are loaded
kv       sequences x context_size x (keys + values of a token), summed over the layers; none for a model that only embeds
compute  the rows of a step, and the process with torch itself
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from core.models.hf_folder import architecture, generates, read_config, tensor_counts
from engine.backends.memory import CPU_SHARE, GPU_SHARE, SlotCost, slots_that_fit, spare_slots
from engine.config import AUTO_SLOTS, EngineConfig, TransformersConfig
from engine.sizing import MemoryNeed

_PROCESS_BYTES: Final = 420 << 20  # Python with torch and transformers, as resident memory
_SIZES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_LOADED: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
_FLOATS: Final = ("F64", "F32", "F16", "BF16")
_ACTIVATIONS: Final = 8  # numbers of a token's width that a layer holds at a time, about


def folder_need(folder: Path, config: EngineConfig) -> MemoryNeed:
    """Estimate the memory of an engine with these slots; AUTO_SLOTS count as one. Raises FolderError."""
    config = msgspec.structs.replace(config, slots=max(1, config.slots))
    values, counts = read_config(folder), tensor_counts(folder)
    number = _number_bytes(counts, config)
    cost = _slot_cost(values, number)
    num_sequences = config.slots + spare_slots(config)
    width, hidden = _integer(values, "hidden_size"), _integer(values, "intermediate_size")
    vocabulary = _integer(values, "vocab_size")
    step = config.batch_tokens * (_ACTIVATIONS * width + 3 * hidden) * 4 + num_sequences * vocabulary * 8
    return MemoryNeed(
        weights_bytes=sum(
            count * (number if kind in _FLOATS else _SIZES.get(kind, 1)) for kind, count in counts.items()
        ),
        kv_bytes=cost.bytes_per_token * config.context_size * num_sequences if cost is not None else 0,
        compute_bytes=_PROCESS_BYTES + step,
    )


def folder_slots(folder: Path, config: EngineConfig, *, free_bytes: int, on_gpu: bool = False) -> int:
    """The slots of an engine that starts with this much free memory; on a GPU, free beside the weights. Raises FolderError."""
    if config.slots != AUTO_SLOTS:
        return config.slots
    memory_bytes = int(free_bytes * (GPU_SHARE if on_gpu else CPU_SHARE))
    cost = _slot_cost(read_config(folder), _number_bytes(tensor_counts(folder), config))
    return slots_that_fit(cost, config, memory_bytes=memory_bytes, on_gpu=on_gpu)


def _number_bytes(counts: Mapping[str, int], config: EngineConfig) -> int:
    """Bytes of a number of the weights, and so of the keys and values."""
    options = config.transformers or TransformersConfig()
    stored = max((kind for kind in counts if kind in _FLOATS), key=lambda kind: counts[kind], default="F32")
    return _LOADED.get(options.dtype, _SIZES[stored])


def _slot_cost(values: dict[str, Any], number: int) -> SlotCost | None:  # Any: JSON
    """The cost of a sequence; None for a model that generates nothing."""
    if not generates(architecture(values)):
        return None
    layers = _integer(values, "num_hidden_layers", "n_layer")
    heads = _integer(values, "num_attention_heads", "n_head")
    width = _integer(values, "hidden_size", "n_embd")
    key_heads = _integer(values, "num_key_value_heads") or heads
    head = _integer(values, "head_dim") or (width // heads if heads else 0)
    return SlotCost(bytes_per_token=2 * layers * key_heads * head * number)


def _integer(values: Mapping[str, Any], *keys: str) -> int:  # Any: JSON
    """The first of these keys that is a whole number; 0 without any."""
    return next((value for key in keys if isinstance(value := values.get(key), int) and value >= 0), 0)
