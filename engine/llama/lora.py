"""LoRA adapters: low-rank changes to a model's matrices, added in every step of a context."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama

from engine.config import LoraAdapter
from engine.errors import ModelFailed


def attach(context: Any, model: Any, adapters: Sequence[LoraAdapter]) -> None:  # Any: pointers
    """Load the adapters and use them for all that the context computes; raises ModelFailed.

    They belong to the model and are freed with it. Memory computed before has no part of them, so attach to a new context.
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
