"""llama.cpp contexts of a model, to decode and to embed, with the same KV types, flash attention and LoRA adapters."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import llama_cpp as llama
from llama_cpp._ggml import libggml

from engine.backends.llama.gguf import metadata
from engine.backends.llama.untouched import left_untouched
from engine.backends.memory import CELLS
from engine.config import EXTRA_ROWS, EngineConfig, KvLayout, KvType, LoraAdapter, Pooling, Switch
from engine.errors import ModelFailed, ModelMissing

_MAX_INPUTS: Final = 128  # in one decode, with vectors in memory
_MAX_RECURRENT_INPUTS: Final = 32  # each has a state of constant size, which may be megabytes
_TOKEN_VECTORS: Final = b"result_embd_pooled"  # the node that llama.cpp reads, also where it does not pool
libggml.ggml_get_name.argtypes = [ctypes.c_void_p]
libggml.ggml_get_name.restype = ctypes.c_char_p
_adapters: Final[dict[tuple[Any, int, str], Any]] = {}  # pointers by model, place in its list, and path
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
    Pooling.MEAN: llama.LLAMA_POOLING_TYPE_MEAN,
    Pooling.CLS: llama.LLAMA_POOLING_TYPE_CLS,
    Pooling.LAST: llama.LLAMA_POOLING_TYPE_LAST,
}


def decoding_context(model: Any, config: EngineConfig, num_slots: int) -> Any:  # Any: pointers
    """Make a context that decodes `num_slots` sequences, with its LoRA adapters; raises ModelFailed."""
    parameters = llama.llama_context_default_params()
    parameters.n_seq_max = num_slots
    parameters.kv_unified = config.kv_layout is KvLayout.UNIFIED
    parameters.n_ctx = config.context_size * (config.slots if parameters.kv_unified else num_slots)
    parameters.n_batch = config.batch_tokens
    parameters.n_ubatch = config.ubatch_tokens
    # by default llama.cpp reserves room for the logits of a whole step
    parameters.n_outputs_max = min(num_slots + EXTRA_ROWS, config.batch_tokens)
    set_threads(parameters, config)
    parameters.swa_full = False  # a window's layers keep little more than the window
    set_kv(parameters, config)
    # buffers in the memory of the host that a GPU reads have to stay where they are
    with left_untouched() if config.gpu_layers == 0 else nullcontext():
        context = llama.llama_init_from_model(model, parameters)
    if not context:
        raise ModelFailed(
            f"There is not enough memory for {num_slots} slots of {config.context_size} tokens. "
            "Lower `slots`, `spare_slots` or `context_size` in the model file."
        )
    attach(context, model, config.lora)
    return context


def window_cells(window: int, config: EngineConfig) -> int:
    """Positions that the layers with a window keep for a slot of split memory: the window and a micro-batch, rounded up."""
    return -(-(window + min(config.ubatch_tokens, config.batch_tokens)) // CELLS) * CELLS


def embedding_context(model: Any, config: EngineConfig, max_tokens: int, step_tokens: int) -> Any:  # Any: pointers
    """Make a context that embeds inputs of up to `max_tokens` tokens, with its LoRA adapters; raises ModelFailed.

    A decode is one micro-batch. If the model can compute an input in pieces, a decode has `step_tokens`, and gives a vector for
    each token; else it has `max_tokens`, and pools each input.
    """
    room = max_tokens + step_tokens  # an unfinished input, and a step beside it
    context = _new_embedding_context(model, config, room, step_tokens, llama.LLAMA_POOLING_TYPE_NONE)
    if not llama.llama_get_memory(context) or not llama.llama_get_causal_attn(context):
        llama.llama_free(context)
        context = _new_embedding_context(model, config, max_tokens, max_tokens, pooling_type(model, config.pooling))
    attach(context, model, config.lora)
    return context


def _new_embedding_context(
    model: Any, config: EngineConfig, room: int, ubatch_tokens: int, pooling: int
) -> Any:  # Any: pointers
    parameters = llama.llama_context_default_params()
    is_recurrent = llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
    inputs = min(_MAX_RECURRENT_INPUTS if is_recurrent else _MAX_INPUTS, ubatch_tokens)
    parameters.n_seq_max = inputs
    parameters.n_ctx = room
    # llama.cpp aborts when it reserves memory to pool a micro-batch that is no multiple of its sequences
    parameters.n_batch = parameters.n_ubatch = -(-ubatch_tokens // inputs) * inputs
    parameters.kv_unified = True
    parameters.embeddings = True
    parameters.pooling_type = pooling
    if pooling == llama.LLAMA_POOLING_TYPE_NONE and config.gpu_layers == 0:
        parameters.cb_eval = _stop_before_logits
    set_threads(parameters, config)
    set_kv(parameters, config)
    context = llama.llama_init_from_model(model, parameters)
    if not context:
        raise ModelFailed(
            f"There is not enough memory to embed {config.context_size} tokens. Lower `context_size` in the model file."
        )
    return context


def set_threads(parameters: Any, config: EngineConfig) -> None:  # Any: llama_context_params
    """Set the threads that decode and those that compute prompts."""
    parameters.n_threads = config.threads
    parameters.n_threads_batch = config.threads_batch or config.threads


def set_kv(parameters: Any, config: EngineConfig) -> None:  # Any: llama_context_params
    """Set the types of keys and values, and flash attention."""
    parameters.type_k = _TYPES[config.cache_type_k]
    parameters.type_v = _TYPES[config.cache_type_v]
    parameters.flash_attn_type = _FLASH_ATTENTION[config.flash_attention]


def attach(context: Any, model: Any, adapters: Sequence[LoraAdapter]) -> None:  # Any: pointers
    """Apply the adapters to all computations of the context; raises ModelFailed.

    They belong to the model and are freed with it, so all contexts of a model share them. Memory that was computed before
    lacks them, so attach them to a new context.
    """
    if not adapters:
        return
    loaded = (_loaded_once(model, index, adapter) for index, adapter in enumerate(adapters))
    pointers = (llama.llama_adapter_lora_p_ctypes * len(adapters))(*loaded)
    scales = (ctypes.c_float * len(adapters))(*(adapter.scale for adapter in adapters))
    if llama.llama_set_adapters_lora(context, pointers, len(adapters), scales) != 0:
        raise ModelFailed("llama.cpp does not accept these LoRA adapters together.")


def forget_adapters(model: Any) -> None:  # Any: a pointer
    """Forget what was loaded for another model that had this address before."""
    for key in [key for key in _adapters if key[0] == model]:
        del _adapters[key]


def _loaded_once(model: Any, index: int, adapter: LoraAdapter) -> Any:  # Any: pointers
    key = model, index, adapter.path
    if key not in _adapters:
        _adapters[key] = _load(model, adapter)
    return _adapters[key]


def _load(model: Any, adapter: LoraAdapter) -> Any:  # Any: pointers
    if not Path(adapter.path).is_file():
        raise ModelMissing(f"There is no LoRA file {adapter.path}.")
    pointer = llama.llama_adapter_lora_init(model, adapter.path.encode())
    if not pointer:
        raise ModelFailed(
            f"{adapter.path} is not a LoRA adapter of this model: llama.cpp cannot read it as one, "
            "or its architecture or the shapes of its tensors are another model's."
        )
    if llama.llama_adapter_get_alora_n_invocation_tokens(pointer):
        raise ModelFailed(f"{adapter.path} starts at certain tokens only (aLoRA); such adapters are not supported.")
    return pointer


def pooling_type(model: Any, pooling: Pooling) -> int:  # Any: a pointer
    """The number of a pooling type in llama.cpp; AUTO is that of the model, or the mean if the model names none."""
    if pooling is not Pooling.AUTO:
        return _POOLING[pooling]
    own = metadata(model, "{}.pooling_type") or str(llama.LLAMA_POOLING_TYPE_NONE)
    if own == str(llama.LLAMA_POOLING_TYPE_RANK):
        raise ModelFailed("This model ranks texts and has no embeddings, unless its model file sets `pooling`.")
    return int(llama.LLAMA_POOLING_TYPE_MEAN if own == str(llama.LLAMA_POOLING_TYPE_NONE) else own)


@llama.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator,unused-ignore]
def _stop_before_logits(tensor: int, is_question: bool, _: Any) -> bool:
    """End a decode once it has the vectors of its tokens, since llama.cpp would go on with logits that nothing reads.

    llama.cpp asks for each node of the graph in order whether its data is needed, then, after a needed one, whether to go on.
    """
    return is_question and libggml.ggml_get_name(tensor) == _TOKEN_VECTORS
