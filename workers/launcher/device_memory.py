"""Memory of a device: the need of each of its models."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec
import structlog

from core.errors import MillraceError
from core.models.engine_options import BackendKind
from core.models.gguf.gguf_header import GgufHeader, read_gguf
from core.models.hf_folder import find_folder
from core.models.model_files import ModelConfig
from engine.config import EngineConfig
from engine.folder_sizing import folder_need, folder_slots
from engine.sizing import chosen_slots, memory_need

log = structlog.get_logger()


def model_bytes(model: ModelConfig, stamp: str, config: EngineConfig, *, free_bytes: int, on_gpu: bool) -> int:
    """Return the bytes that a model needs, with as many slots as it gets where these are `auto`.

    `stamp` changes with the file of the weights. A file that cannot be read needs nothing: its engine reports the reason.
    """
    if model.memory_bytes is not None:
        return model.memory_bytes
    if model.backend is BackendKind.TRANSFORMERS:
        return _folder_bytes(model, stamp, config, free_bytes=free_bytes, on_gpu=on_gpu)
    if model.backend is not BackendKind.LLAMA:
        return 0
    header = model_header(model, stamp)
    if header is None:
        return 0
    try:
        slots = model_slots(model, stamp, config, free_bytes=free_bytes, on_gpu=on_gpu)
        return memory_need(header, msgspec.structs.replace(config, slots=slots)).total
    except MillraceError as error:
        log.warning("model_not_sized", model=model.name, reason=str(error))
        return 0


def model_slots(model: ModelConfig, stamp: str, config: EngineConfig, *, free_bytes: int, on_gpu: bool) -> int:
    """Return the slots of an engine in this much free memory, where they are `auto`. Raises a MillraceError as sizing does.

    On a GPU the weights come out of that memory first.
    """
    with_weights = on_gpu and config.gpu_layers < 0
    if model.backend is BackendKind.TRANSFORMERS:
        folder = find_folder(model.parameters.model)
        if folder is None:
            return config.slots
        beside = folder_need(folder, config).weights_bytes if with_weights else 0
        return folder_slots(folder, config, free_bytes=max(0, free_bytes - beside), on_gpu=on_gpu)
    header = model_header(model, stamp)
    if header is None:
        return config.slots
    beside = header.tensor_bytes if with_weights else 0
    return chosen_slots(header, config, free_bytes=max(0, free_bytes - beside), on_gpu=on_gpu)


def model_header(model: ModelConfig, stamp: str) -> GgufHeader | None:
    """The header of a GGUF file; None where it cannot be read."""
    return _header(model.parameters.model, stamp)


def _folder_bytes(model: ModelConfig, stamp: str, config: EngineConfig, *, free_bytes: int, on_gpu: bool) -> int:
    """Bytes of a folder's model; 0 where it cannot be read, or is not downloaded yet."""
    if (folder := find_folder(model.parameters.model)) is None:
        return 0
    try:
        slots = model_slots(model, stamp, config, free_bytes=free_bytes, on_gpu=on_gpu)
        return folder_need(folder, msgspec.structs.replace(config, slots=slots)).total
    except MillraceError as error:
        log.warning("model_not_sized", model=model.name, reason=str(error))
        return 0


@lru_cache(maxsize=64)
def _header(path: str, stamp: str) -> GgufHeader | None:  # noqa: ARG001 - the stamp is a part of the key
    try:
        return read_gguf(Path(path))
    except (MillraceError, OSError):
        return None
