"""Memory of a device: the budget for its models, and the need of each of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec
import structlog

from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.errors import MillraceError
from core.memory_sizes import parse_device_memory
from core.models.engine_options import BackendKind
from core.models.gguf_header import GgufHeader, read_gguf
from core.models.model_files import ModelConfig
from core.settings import Settings
from engine.config import EngineConfig
from engine.sizing import chosen_slots, memory_need

log = structlog.get_logger()

UNLIMITED: Final = 1 << 62  # where the system does not report the memory of the device
_CPU_SHARE: Final = 0.8
_GPU_SHARE: Final = 0.9


def device_budget(settings: Settings, device: Device) -> int:
    """Return the bytes that the models of a device may have together."""
    budgets = parse_device_memory(settings.device_memory)
    budget = budgets.get(device.name, budgets.get(""))
    if budget is not None:
        return budget
    is_cpu = device.kind is DeviceKind.CPU
    known = device.total_bytes if is_cpu else device.free_bytes
    return UNLIMITED if known is None else int(known * (_CPU_SHARE if is_cpu else _GPU_SHARE))


def model_bytes(model: ModelConfig, stamp: str, config: EngineConfig, *, free_bytes: int, on_gpu: bool) -> int:
    """Return the bytes that a model needs, with as many slots as it gets where these are `auto`.

    `stamp` changes with the file of the weights. A file that cannot be read needs nothing: its engine reports the reason.
    """
    if model.memory_bytes is not None or model.backend is not BackendKind.LLAMA:
        return model.memory_bytes or 0
    header = _header(model.parameters.model, stamp)
    if header is None:
        return 0
    try:
        slots = model_slots(model, stamp, config, free_bytes=free_bytes, on_gpu=on_gpu)
        return memory_need(header, msgspec.structs.replace(config, slots=slots)).total
    except MillraceError as error:
        log.warning("model_not_sized", model=model.name, reason=str(error))
        return 0


def model_slots(model: ModelConfig, stamp: str, config: EngineConfig, *, free_bytes: int, on_gpu: bool) -> int:
    """Return the slots of an engine in this much free memory, where they are `auto`. Raises a MillraceError as sizing does."""
    header = _header(model.parameters.model, stamp)
    if header is None:
        return config.slots
    return chosen_slots(header, config, free_bytes=max(0, free_bytes), on_gpu=on_gpu)


@lru_cache(maxsize=64)
def _header(path: str, stamp: str) -> GgufHeader | None:  # noqa: ARG001 - the stamp is a part of the key
    try:
        return read_gguf(Path(path))
    except (MillraceError, OSError):
        return None
