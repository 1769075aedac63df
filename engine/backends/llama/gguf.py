"""Process-wide start of llama.cpp, and the metadata of a GGUF file."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

import llama_cpp as llama

from engine.log import log_stderr

_ERROR_LEVEL: Final = 4


@llama.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _log(level: int, text: bytes, _: Any) -> None:  # Any: a pointer
    """Log only errors, since llama.cpp logs much. It never prints prompts."""
    if level == _ERROR_LEVEL:
        log_stderr(text.decode(errors="replace"))


@cache
def start_llama() -> None:
    """Initialise llama.cpp before any other call of it; further calls do nothing."""
    llama.llama_log_set(_log, ctypes.c_void_p(0))
    llama.llama_backend_init()


def metadata(model: Any, key: str) -> str:  # Any: a pointer
    """The value of a key; empty where there is none. `{}` in the key stands for the architecture, a prefix of many keys."""
    if "{}" in key:
        key = key.format(metadata(model, "general.architecture"))
    size = llama.llama_model_meta_val_str(model, key.encode(), None, 0)
    if size < 0:
        return ""
    buffer = ctypes.create_string_buffer(size + 1)
    llama.llama_model_meta_val_str(model, key.encode(), buffer, size + 1)
    return buffer.value.decode(errors="replace")
