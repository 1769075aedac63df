"""GPUs as llama.cpp lists them, by its own names: CUDA0, ROCm0, Vulkan0."""

from __future__ import annotations

import ctypes
from typing import Any, Final

import llama_cpp as llama
import msgspec
from llama_cpp._ggml import libggml

from engine.backends.llama.gguf import start_llama
from engine.config import EngineConfig, SplitMode
from engine.errors import ModelFailed

_GPU: Final = 1
_INTEGRATED_GPU: Final = 2
_SPLIT_MODES: Final = {
    SplitMode.NONE: llama.LLAMA_SPLIT_MODE_NONE,
    SplitMode.LAYER: llama.LLAMA_SPLIT_MODE_LAYER,
    SplitMode.ROW: llama.LLAMA_SPLIT_MODE_ROW,
}

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
    return [_read(gpu) for gpu in _pointers()]


def divide(parameters: Any, config: EngineConfig) -> list[Any]:  # Any: llama_model_params, and arrays of C
    """Set the GPUs of a model and the part of each; return the arrays, to be kept until it is loaded. Raises ModelFailed."""
    arrays: list[Any] = []
    if not config.gpu_layers:  # llama.cpp refuses a mode for one GPU where there is none
        return arrays
    parameters.split_mode = _SPLIT_MODES[config.split_mode]
    if config.tensor_split:
        parts = (ctypes.c_float * max(llama.llama_max_devices(), len(config.tensor_split)))(*config.tensor_split)
        parameters.tensor_split = parts
        arrays.append(parts)
    if config.gpus:
        names = [*selected_gpus(config), None]
        pointers = (ctypes.c_void_p * len(names))(*names)
        parameters.devices = ctypes.cast(pointers, ctypes.c_void_p)
        arrays.append(pointers)
    return arrays


def selected_gpus(config: EngineConfig) -> list[Any]:  # Any: pointers
    """The GPUs of a model: those that the config names, else all that this process sees. Raises ModelFailed."""
    if not config.gpus:
        return _pointers()
    found = {name: libggml.ggml_backend_dev_by_name(name.encode()) for name in config.gpus}
    if absent := [name for name, pointer in found.items() if not pointer]:
        known = ", ".join(_read(gpu).name for gpu in _pointers()) or "no GPU"
        raise ModelFailed(f"llama.cpp sees {known}, and not {', '.join(absent)}: use another --device.")
    return list(found.values())


def _pointers() -> list[Any]:  # Any: pointers
    every = [libggml.ggml_backend_dev_get(index) for index in range(libggml.ggml_backend_dev_count())]
    kinds = [(libggml.ggml_backend_dev_type(pointer), pointer) for pointer in every]
    return [each for kind, each in kinds if kind == _GPU] or [each for kind, each in kinds if kind == _INTEGRATED_GPU]


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
