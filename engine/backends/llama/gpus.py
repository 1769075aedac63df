"""GPUs as llama.cpp lists them, by its own names: CUDA0, ROCm0, Vulkan0."""

from __future__ import annotations

import ctypes
from typing import Any, Final

import msgspec
from llama_cpp._ggml import libggml

from engine.backends.llama.gguf import start_llama

_GPU: Final = 1
_INTEGRATED_GPU: Final = 2

# llama_cpp has no bindings for these.
libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
libggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
libggml.ggml_backend_dev_by_name.argtypes = [ctypes.c_char_p]
libggml.ggml_backend_dev_by_name.restype = ctypes.c_void_p
for _name in ("name", "description"):
    _function = getattr(libggml, f"ggml_backend_dev_{_name}")
    _function.argtypes, _function.restype = [ctypes.c_void_p], ctypes.c_char_p
libggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
libggml.ggml_backend_dev_type.restype = ctypes.c_int
libggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
libggml.ggml_backend_dev_memory.restype = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU: its name in llama.cpp, and that of the card."""

    name: str
    card: str
    total_bytes: int
    free_bytes: int


def list_gpus() -> list[Gpu]:
    """The cards; those that are part of the processor only where there is no other."""
    start_llama()
    pointers = [libggml.ggml_backend_dev_get(index) for index in range(libggml.ggml_backend_dev_count())]
    for kind in (_GPU, _INTEGRATED_GPU):
        if gpus := [_read(each) for each in pointers if libggml.ggml_backend_dev_type(each) == kind]:
            return gpus
    return []


def device_memory(device: Any) -> tuple[int, int]:  # Any: a pointer
    """Free bytes of a device, and all of them."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    libggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def _read(device: Any) -> Gpu:  # Any: a pointer
    free, total = device_memory(device)
    return Gpu(
        name=libggml.ggml_backend_dev_name(device).decode(),
        card=libggml.ggml_backend_dev_description(device).decode(errors="replace"),
        total_bytes=total,
        free_bytes=free,
    )
