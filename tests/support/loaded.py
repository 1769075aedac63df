"""A model of plain llama.cpp for the duration of a test."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp as llama

from engine.backends.llama.gguf import start_llama


@contextmanager
def loaded(path: Path) -> Iterator[ctypes.c_void_p]:
    """Load a model file, yield its pointer, and free it."""
    start_llama()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    assert model, "llama.cpp does not load it"
    try:
        yield model
    finally:
        llama.llama_model_free(model)
