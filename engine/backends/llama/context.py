"""llama.cpp contexts of a model, to decode and to embed, with the same KV types, flash attention and LoRA adapters."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp as llama

from engine.backends.llama.gguf import metadata
from engine.config import EngineConfig, KvLayout, KvType, LoraAdapter, Pooling, Switch
from engine.errors import ModelFailed
from engine.scheduler.step_builder import PROMPT_LOGPROB_ROWS

_MAX_INPUTS: Final = 128  # in one decode, with vectors in memory
_MAX_RECURRENT_INPUTS: Final = 32  # each has a state of constant size, which may be megabytes
_TYPES: Final = {
    KvType.F32: llama.GGML_TYPE_F32,
    KvType.F16: llama.GGML_TYPE_F16,
    KvType.Q8_0: llama.GGML_TYPE_Q8_0,
    KvType.Q5_1: llama.GGML_TYPE_Q5_1,
    KvType.Q5_0: llama.GGML_TYPE_Q5_0,
    KvType.Q4_1: llama.GGML_TYPE_Q4_1,
    KvType.Q4_0: llama.GGML_TYPE_Q4_0,
}
_FLASH_ATTENTION: Final = {
    Switch.AUTO: llama.LLAMA_FLASH_ATTN_TYPE_AUTO,
    Switch.ON: llama.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    Switch.OFF: llama.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_POOLING: Final = {
    Pooling.AUTO: llama.LLAMA_POOLING_TYPE_UNSPECIFIED,
    Pooling.MEAN: llama.LLAMA_POOLING_TYPE_MEAN,
    Pooling.CLS: llama.LLAMA_POOLING_TYPE_CLS,
    Pooling.LAST: llama.LLAMA_POOLING_TYPE_LAST,
}


def decoding_context(model: Any, config: EngineConfig, num_slots: int, max_drafts: int) -> Any:  # Any: pointers
    """Make a context that decodes `num_slots` sequences, with its LoRA adapters; raises ModelFailed."""
    threads = config.threads or len(os.sched_getaffinity(0))
    parameters = llama.llama_context_default_params()
    parameters.n_seq_max = num_slots
    parameters.kv_unified = config.kv_layout is KvLayout.UNIFIED
    parameters.n_ctx = config.context_size * (config.slots if parameters.kv_unified else num_slots)
    parameters.n_batch = config.batch_tokens
    parameters.n_ubatch = config.ubatch_tokens
    # by default llama.cpp reserves room for the logits of a whole step
    parameters.n_outputs_max = min(num_slots * (1 + max_drafts) + PROMPT_LOGPROB_ROWS, config.batch_tokens)
    parameters.n_threads = threads
    parameters.n_threads_batch = config.threads_batch or threads
    parameters.swa_full = False  # a window's layers keep little more than the window
    set_kv(parameters, config)
    context = llama.llama_init_from_model(model, parameters)
    if not context:
        raise ModelFailed(
            f"There is not enough memory for {num_slots} slots of {config.context_size} tokens. "
            "Lower `slots`, `spare_slots` or `context_size` in the model file."
        )
    attach(context, model, config.lora)
    return context


def embedding_context(model: Any, config: EngineConfig, max_tokens: int, step_tokens: int) -> Any:  # Any: pointers
    """Make a context that pools inputs of up to `max_tokens` tokens, with its LoRA adapters; raises ModelFailed.

    A decode, which is one micro-batch, has `step_tokens`; or `max_tokens`, if the model cannot compute an input in pieces.
    """
    context = _new_embedding_context(model, config, max_tokens + step_tokens, step_tokens)  # unfinished input, and step
    if not llama.llama_get_memory(context) or not llama.llama_get_causal_attn(context):
        llama.llama_free(context)
        context = _new_embedding_context(model, config, max_tokens, max_tokens)
    attach(context, model, config.lora)
    return context


def _new_embedding_context(model: Any, config: EngineConfig, room: int, ubatch_tokens: int) -> Any:  # Any: pointers
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = room
    parameters.n_batch = parameters.n_ubatch = ubatch_tokens
    is_recurrent = llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
    parameters.n_seq_max = min(_MAX_RECURRENT_INPUTS if is_recurrent else _MAX_INPUTS, ubatch_tokens)
    parameters.kv_unified = True
    parameters.embeddings = True
    parameters.pooling_type = _pooling_type(model, config.pooling)
    parameters.n_threads = config.threads or len(os.sched_getaffinity(0))
    parameters.n_threads_batch = config.threads_batch or parameters.n_threads
    set_kv(parameters, config)
    context = llama.llama_init_from_model(model, parameters)
    if not context:
        raise ModelFailed(
            f"There is not enough memory to embed {config.context_size} tokens. Lower `context_size` in the model file."
        )
    return context


def set_kv(parameters: Any, config: EngineConfig) -> None:  # Any: llama_context_params
    """Set the types of keys and values, and flash attention."""
    parameters.type_k = _TYPES[config.cache_type_k]
    parameters.type_v = _TYPES[config.cache_type_v]
    parameters.flash_attn_type = _FLASH_ATTENTION[config.flash_attention]


def attach(context: Any, model: Any, adapters: Sequence[LoraAdapter]) -> None:  # Any: pointers
    """Load the adapters and apply them to all computations of the context; raises ModelFailed.

    They belong to the model and are freed with it. Memory that was computed before lacks them, so attach them to a new
    context.
    """
    if not adapters:
        return
    pointers = (llama.llama_adapter_lora_p_ctypes * len(adapters))(*(_load(model, adapter) for adapter in adapters))
    scales = (ctypes.c_float * len(adapters))(*(adapter.scale for adapter in adapters))
    if llama.llama_set_adapters_lora(context, pointers, len(adapters), scales) != 0:
        raise ModelFailed("llama.cpp does not accept these LoRA adapters together.")


def _load(model: Any, adapter: LoraAdapter) -> Any:  # Any: pointers
    if not Path(adapter.path).is_file():
        raise ModelFailed(f"There is no LoRA file {adapter.path}.")
    pointer = llama.llama_adapter_lora_init(model, adapter.path.encode())
    if not pointer:
        raise ModelFailed(
            f"{adapter.path} is not a LoRA adapter of this model: llama.cpp cannot read it as one, "
            "or its architecture or the shapes of its tensors are another model's."
        )
    if llama.llama_adapter_get_alora_n_invocation_tokens(pointer):
        raise ModelFailed(f"{adapter.path} starts at certain tokens only (aLoRA); such adapters are not supported.")
    return pointer


def _pooling_type(model: Any, pooling: Pooling) -> int:  # Any: a pointer
    """The number of a pooling type in llama.cpp, which by default does not pool if the model names no type."""
    own = metadata(model, "{}.pooling_type")
    if pooling is Pooling.AUTO and own == str(llama.LLAMA_POOLING_TYPE_RANK):
        raise ModelFailed("This model ranks texts and has no embeddings, unless its model file sets `pooling`.")
    if pooling is Pooling.AUTO and own in ("", str(llama.LLAMA_POOLING_TYPE_NONE)):
        pooling = Pooling.MEAN
    return _POOLING[pooling]
