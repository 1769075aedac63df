"""Process-wide start of llama.cpp, and the metadata of a GGUF file."""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any, Final

import llama_cpp as llama
from llama_cpp._ggml import libggml

from engine.errors import ModelFailed, ModelMissing
from engine.log import log_stderr

_ERROR_LEVEL: Final = 4
_LOADING: Final = "error loading model: "


_errors: deque[str] = deque(maxlen=8)


@llama.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _log(level: int, text: bytes, _: Any) -> None:  # Any: a pointer
    """Log only errors, since llama.cpp logs much. It never prints prompts."""
    if level == _ERROR_LEVEL:
        message = text.decode(errors="replace")
        _errors.append(message)
        log_stderr(message)


@cache
def start_llama() -> None:
    """Initialise llama.cpp before any other call of it; further calls do nothing."""
    llama.llama_log_set(_log, ctypes.c_void_p(0))
    _load_processor_libraries()
    llama.llama_backend_init()


def _load_processor_libraries() -> None:
    """Load the library that suits this processor, where llama.cpp was built with one for each generation of processors."""
    folder = Path(llama.__file__).parent / "lib"
    if next(folder.glob("libggml-cpu-*.so"), None) is not None:
        libggml.ggml_backend_load_all_from_path(str(folder).encode())


def load_model(path: str, parameters: Any) -> Any:  # Any: llama_model_params and a pointer
    """Load a model file; raises ModelFailed with llama.cpp's own reason."""
    if not Path(path).is_file():
        raise ModelMissing(f"There is no model file {path}.")
    start_llama()
    _errors.clear()
    model = llama.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        reason = next((text.strip().partition(_LOADING)[2] for text in _errors if _LOADING in text), "")
        raise ModelFailed(f"{path} is not a model that llama.cpp can load{': ' if reason else ''}{reason}.")
    return model


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
