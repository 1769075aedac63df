"""Builds an engine's configuration from a model file and the settings; the engine itself reads neither."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Final

from core.cpu_cores import Cores
from core.devices.inventory import Device
from core.devices.names import DeviceKind, parse_device
from core.models.engine_options import BackendKind, KvLayout, SplitMode, Switch
from core.models.model_files import ModelConfig
from core.settings import Settings
from engine.config import AUTO_SLOTS, EngineConfig, LoraAdapter, TransformersConfig, UpstreamConfig
from workers.residency.placement import parts
from workers.runtime.host_paths import engine_endpoint

_FAKE_SLOTS: Final = 8


def engine_config(
    settings: Settings, model: ModelConfig, device: str, cores: Cores, devices: Sequence[Device] = ()
) -> EngineConfig:
    """The configuration of one model's engine on one device, or on several `devices`, of which that is the first."""
    slots = _slots(settings, model)
    takes_turns = _takes_turns(model, device, cores)
    return EngineConfig(
        model=model.name,
        endpoint=engine_endpoint(settings, model.name, device),
        backend=model.backend,
        model_path=model.weights,
        context_size=model.context_size,
        slots=slots,
        spare_slots=model.spare_slots,
        threads=model.threads or cores.threads,
        threads_batch=model.threads_batch,
        turn_key=_turn_key(cores) if takes_turns else None,
        cores=cores.cpus if takes_turns and _threads(model, cores) == len(cores.cpus) else (),
        gpu_layers=0 if _is_cpu(device) else model.gpu_layers,
        gpus=_gpus([each.name for each in devices] or [device]),
        split_mode=model.split_mode or (SplitMode.LAYER if len(devices) > 1 else SplitMode.NONE),
        tensor_split=parts(model, devices) if len(devices) > 1 else (),
        batch_tokens=max(model.batch_tokens, slots),
        ubatch_tokens=model.ubatch_tokens,
        prefill_tokens=model.prefill_tokens,
        kv_layout=model.kv_layout,
        cache_type_k=model.cache_type_k,
        cache_type_v=model.cache_type_v,
        flash_attention=model.flash_attention,
        context_shift=model.context_shift,
        speculation=model.speculation,
        tunable=_tunable(model, slots),
        jump_forward=model.jump_forward,
        embeddings=model.embeddings,
        pooling=model.pooling,
        lora=[LoraAdapter(path=adapter.path, scale=adapter.scale) for adapter in model.lora],
        chat_template=model.chat_template,
        stopwords=list(model.stopwords),
        step_seconds=model.step_seconds,
        load_seconds=model.load_seconds,
        hang_seconds=settings.engine_hang_seconds,
        upstream=_upstream(settings, model) if model.backend is BackendKind.OPENAI else None,
        transformers=_transformers(model, device) if model.backend is BackendKind.TRANSFORMERS else None,
    )


def _upstream(settings: Settings, model: ModelConfig) -> UpstreamConfig:
    return UpstreamConfig(
        model=model.upstream_model or model.name,
        base_urls=model.base_url,
        api_key_env=model.api_key_env,
        headers=model.headers,
        timeout_seconds=model.timeout_seconds,
        max_concurrency=None if model.max_concurrency == "auto" else model.max_concurrency,
        max_attempts=settings.line_attempts,
        command=model.command,
        port=model.port,
        health_path=model.health_path,
        ready_seconds=model.ready_seconds,
    )


def _transformers(model: ModelConfig, device: str) -> TransformersConfig:
    """The options of the library; it sees only the device of its process, whose number there is 0."""
    kind = parse_device(device).kind
    return TransformersConfig(
        dtype=model.dtype,
        device=model.device or ("cpu" if kind is DeviceKind.CPU else "cuda:0"),
        trust_remote_code=model.trust_remote_code,
        attention=model.attention,
    )


def _is_cpu(device: str) -> bool:
    return parse_device(device).kind is DeviceKind.CPU


def _gpus(devices: Sequence[str]) -> tuple[str, ...]:
    """The names in llama.cpp of GPUs that the environment of a process cannot select."""
    names = [parse_device(device) for device in devices]
    return tuple(f"Vulkan{name.number}" for name in names if name.kind is DeviceKind.VULKAN)


def _slots(settings: Settings, model: ModelConfig) -> int:
    """Sequences side by side. `auto` is measured, and sized from free memory, neither of which the fake backend has."""
    chosen = [each for each in (model.slots, settings.slots) if each is not None]
    if model.backend is BackendKind.FAKE:
        return next((each for each in chosen if each != "auto"), _FAKE_SLOTS)
    return AUTO_SLOTS if chosen[0] == "auto" else chosen[0]


def _tunable(model: ModelConfig, slots: int) -> tuple[str, ...]:
    """The settings that the model file leaves to measurement."""
    free = {
        "slots": slots == AUTO_SLOTS,
        "kv_layout": model.kv_layout is KvLayout.AUTO and not model.context_shift,  # a shift needs split memory
        "flash_attention": model.flash_attention is Switch.AUTO,
        "ubatch_tokens": "ubatch_tokens" not in model.model_fields_set,
        "prefill_tokens": "prefill_tokens" not in model.model_fields_set,
    }
    return tuple(name for name, is_free in free.items() if is_free)


def _takes_turns(model: ModelConfig, device: str, cores: Cores) -> bool:
    """Does this engine compute on all cores? Not on a GPU, and not if its `threads` leave cores to others."""
    computes = model.backend in (BackendKind.LLAMA, BackendKind.TRANSFORMERS)
    is_on_cpu = computes and (_is_cpu(device) or not model.gpu_layers or model.device == "cpu")
    return is_on_cpu and (_threads(model, cores) >= cores.threads)


def _turn_key(cores: Cores) -> int:
    """The key that engines on the same CPUs and under the same quota share, in all workers of this user and host."""
    identity = f"millrace {os.geteuid()} {cores.group} {cores.cpus}"
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big") >> 1 | 1  # positive and never 0


def _threads(model: ModelConfig, cores: Cores) -> int:
    """The threads of the largest team of this engine."""
    return max(model.threads or cores.threads, model.threads_batch)
