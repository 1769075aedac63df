"""How keys and values are kept, in llama.cpp's terms: the same in every context of a model."""

from __future__ import annotations

from typing import Any, Final

import llama_cpp as llama

from engine.config import EngineConfig, KvType, Switch

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


def set_kv(parameters: Any, config: EngineConfig) -> None:  # Any: llama_context_params
    """Types of keys and values, and whether attention is computed in one piece."""
    parameters.type_k = _TYPES[config.cache_type_k]
    parameters.type_v = _TYPES[config.cache_type_v]
    parameters.flash_attn_type = _FLASH_ATTENTION[config.flash_attention]
