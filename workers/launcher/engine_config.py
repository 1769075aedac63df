"""Builds an engine's configuration from a model file and the settings; the engine itself reads neither."""

from __future__ import annotations

from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig
from core.settings import Settings
from engine.config import AUTO_SLOTS, EngineConfig, LoraAdapter
from workers.runtime.host_paths import engine_endpoint


def engine_config(settings: Settings, model: ModelConfig, device: str) -> EngineConfig:
    """The configuration of one model's engine on one device."""
    slots = _slots(settings, model)
    return EngineConfig(
        model=model.name,
        endpoint=engine_endpoint(settings, model.name, device),
        backend=model.backend,
        model_path=model.parameters.model,
        context_size=model.context_size,
        slots=slots,
        spare_slots=model.spare_slots,
        threads=model.threads,
        threads_batch=model.threads_batch,
        gpu_layers=0 if device == "cpu" else model.gpu_layers,
        batch_tokens=max(model.batch_tokens, slots),
        ubatch_tokens=model.ubatch_tokens,
        prefill_tokens=model.prefill_tokens,
        kv_layout=model.kv_layout,
        cache_type_k=model.cache_type_k,
        cache_type_v=model.cache_type_v,
        flash_attention=model.flash_attention,
        context_shift=model.context_shift,
        speculation=model.speculation,
        jump_forward=model.jump_forward,
        embeddings=model.embeddings,
        pooling=model.pooling,
        lora=[LoraAdapter(path=adapter.path, scale=adapter.scale) for adapter in model.lora],
        chat_template=model.chat_template,
        stopwords=list(model.stopwords),
        step_seconds=model.step_seconds,
        hang_seconds=settings.engine_hang_seconds,
    )


def _slots(settings: Settings, model: ModelConfig) -> int:
    """Sequences side by side. `auto` is sized from free memory, which the fake backend does not have."""
    if model.slots == "auto":
        return settings.slots if model.backend is BackendKind.FAKE else AUTO_SLOTS
    return model.slots or settings.slots
