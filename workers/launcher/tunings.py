"""Tunings: which measured settings belong to a model on a device, by all that its speed depends on."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import msgspec

from core.devices.build import installed_build
from core.devices.inventory import Device
from core.models.engine_options import BackendKind
from core.models.gguf.gguf_header import GgufHeader
from core.models.model_files import ModelConfig
from core.settings import Settings
from engine.config import EngineConfig, tuned
from engine.tuning.store import read_tuning
from workers.launcher.device_memory import model_header

_FOLDER: Final = "tunings"
_PACKAGE: Final = "llama-cpp-python"
_OF_SPEED: Final = (
    "context_size", "threads", "threads_batch", "cores", "gpu_layers", "gpus", "split_mode", "tensor_split", "batch_tokens",
    "cache_type_k", "cache_type_v", "tunable",
)  # fmt: skip
_MEASURED: Final = ("kv_layout", "flash_attention", "ubatch_tokens", "slots")


def with_tuning(
    settings: Settings, model: ModelConfig, stamp: str, config: EngineConfig, device: Device
) -> EngineConfig:
    """Add what was measured, and the file to which its engine writes that; nothing where nothing is to be measured.

    Models of one shape share a tuning, since no step depends on the values of weights.
    """
    header = model_header(model, stamp) if model.backend is BackendKind.LLAMA else None
    if header is None or not settings.tuning:
        return config
    facts = {
        "model": _shape(header),
        "build": [_version(), installed_build().title],
        "device": [str(device.kind), device.card],
        "lora": [adapter.path for adapter in config.lora],
        "fixed": {name: getattr(config, name) for name in _MEASURED if name not in config.tunable},
        **{name: getattr(config, name) for name in _OF_SPEED},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    path = settings.state_dir / _FOLDER / f"{digest}.json"
    config = msgspec.structs.replace(config, tuning_path=str(path))
    tuning = read_tuning(path)
    return config if tuning is None else tuned(config, tuning)


def _shape(header: GgufHeader) -> str:
    """A hash of all tensors and of the numbers of the architecture."""
    prefix = f"{header.architecture}."
    numbers = sorted((key, str(value)) for key, value in header.metadata.items() if key.startswith(prefix))
    tensors = [(tensor.name, tensor.type.name, str(tensor.shape)) for tensor in header.tensors]
    return hashlib.sha256(repr((numbers, tensors, header.num_tokens)).encode()).hexdigest()


def _version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return ""
