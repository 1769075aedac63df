"""Slots by measurement: the cost of a slot of a loaded model, and the memory that is available for slots.

The cost is measured, not derived, from the size that llama.cpp reports for the state of a sequence after one token and after
two. So it is right for every architecture, with shared, compressed or recurrent layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp as llama

from engine.backends.llama.context import set_kv
from engine.backends.llama.gpus import device_memory, selected_gpus
from engine.backends.memory import GPU_SHARE, SlotCost, host_bytes, slots_that_fit
from engine.config import AUTO_SLOTS, EngineConfig
from engine.errors import ModelFailed


def resolve_slots(model: Any, config: EngineConfig) -> int:  # Any: a pointer
    """The configured slots, or with AUTO_SLOTS as many as memory holds beside the spare ones; raises ModelFailed."""
    if config.slots != AUTO_SLOTS:
        return config.slots
    memory_bytes, on_gpu = free_memory(config)
    return slots_that_fit(measure_slot(model, config), config, memory_bytes=memory_bytes, on_gpu=on_gpu)


def free_memory(config: EngineConfig) -> tuple[int, bool]:
    """Bytes that are free for slots, and whether they are a GPU's. Raises ModelFailed."""
    gpus = selected_gpus(config) if config.gpu_layers != 0 else []
    if not gpus:
        return host_bytes(), False
    return _gpu_bytes([device_memory(gpu)[0] for gpu in gpus], config.tensor_split), True


def measure_slot(model: Any, config: EngineConfig) -> SlotCost | None:  # Any: a pointer
    """Measure the cost of a sequence with these KV types; None for an encoder, which has no memory. Raises ModelFailed."""
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 32
    parameters.n_seq_max = 1
    set_kv(parameters, config)
    context = llama.llama_init_from_model(model, parameters)
    if not context:
        raise ModelFailed("llama.cpp cannot set up a context with this model's KV types.")
    try:
        if not llama.llama_get_memory(context):
            return None
        first, second = (_state_bytes_after_token(context) for _ in range(2))
    finally:
        llama.llama_free(context)
    return SlotCost(bytes_per_token=second - first, bytes_per_slot=2 * first - second)


def _state_bytes_after_token(context: Any) -> int:  # Any: a pointer
    if llama.llama_decode(context, llama.llama_batch_get_one((llama.llama_token * 1)(0), 1)) != 0:
        raise ModelFailed("llama.cpp cannot decode with this model.")
    size: int = llama.llama_state_seq_get_size(context, 0)
    return size


def _gpu_bytes(free: Sequence[int], parts: Sequence[float]) -> int:
    """The bytes for slots of which each GPU holds its part: the one with the least room for its part limits them."""
    if len(parts) != len(free):
        return int(sum(free) * GPU_SHARE)
    return int(min(size * sum(parts) / part for size, part in zip(free, parts, strict=True)) * GPU_SHARE)
