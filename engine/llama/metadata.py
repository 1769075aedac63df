"""What a GGUF says of itself: values of its metadata as text. There also without its weights."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp as llama


def metadata(model: Any, key: str) -> str:  # Any: a pointer
    """A value; empty where there is none. `{}` in the key stands for the architecture, which begins the names of its own."""
    if "{}" in key:
        key = key.format(metadata(model, "general.architecture"))
    buffer = ctypes.create_string_buffer(64)
    return buffer.value.decode() if llama.llama_model_meta_val_str(model, key.encode(), buffer, 64) >= 0 else ""
