"""Configuration of one engine, independent of the environment."""

from __future__ import annotations

from typing import Final

import msgspec

from core.models.engine_options import BackendKind, KvLayout, KvType, Pooling, SplitMode, Switch

__all__ = [
    "AUTO_SLOTS",
    "EXTRA_ROWS",
    "BackendKind",
    "EngineConfig",
    "KvLayout",
    "KvType",
    "LoraAdapter",
    "Pooling",
    "SplitMode",
    "Switch",
    "TransformersConfig",
    "Tuning",
    "UpstreamConfig",
    "tuned",
]

AUTO_SLOTS: Final = 0
# Rows of logits beyond one per slot: of a prompt with logprobs of its own, or of drafts.
EXTRA_ROWS: Final = 32


class LoraAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """A GGUF of low-rank changes to the matrices of the model, added `scale` times."""

    path: str
    scale: float = 1.0


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An OpenAI-compatible server, or several of equal content; `base_urls` end before `/chat/completions`.

    `model` is their name of the model. `api_key_env` names the variable of the environment that holds the key. A request may
    take `timeout_seconds` and have `max_attempts`. `max_concurrency` limits the requests at a time; None finds the number.
    `command` starts the server, which answers at `health_path` of `port` within `ready_seconds`; then `base_urls` is empty.
    """

    model: str
    base_urls: tuple[str, ...] = ()
    api_key_env: str | None = None
    headers: dict[str, str] = {}
    timeout_seconds: float = 600.0
    max_concurrency: int | None = None
    max_attempts: int = 3
    command: tuple[str, ...] = ()
    port: int | None = None
    health_path: str = "/health"
    ready_seconds: float = 600.0


class TransformersConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a model in the format of Hugging Face's transformers; `device` is a name of torch, such as `cuda:0`."""

    dtype: str = "auto"
    device: str = "cpu"
    trust_remote_code: bool = False
    attention: str = "auto"


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """The fastest settings of a model on a device, and what was measured for them, in `seconds` in all.

    `row_seconds`: a step that computes one token of each of so many sequences, with `depth` tokens before it.
    `prompt_seconds`: a step of so many tokens of one prompt.
    """

    slots: int
    kv_layout: KvLayout
    flash_attention: Switch
    ubatch_tokens: int
    row_seconds: list[tuple[int, float]]
    prompt_seconds: list[tuple[int, float]]
    depth: int
    seconds: float


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One engine: one model on one device, with `slots` sequences side by side.

    `context_size` is the room of one sequence in tokens; `endpoint` is a directory with the Unix sockets of the engine.
    `slots` of AUTO_SLOTS are the fastest number, as far as memory holds them, and no more than `most_slots`; `spare_slots` keep
    paused and idle histories, None lets the engine choose. A step has `batch_tokens` at most, which the device computes
    `ubatch_tokens` at a time, and `prefill_tokens` of prompts at most, which limits how long decoding sequences wait. `threads`
    decode and `threads_batch` compute prompts; 0 is one per CPU, and as many as `threads`. Engines with the same `turn_key`
    compute one at a time. With `cores`, the logical CPUs of each core, a thread is bound to each. The model is divided among
    `gpus`, by llama.cpp's names, in parts of `tensor_split`; without names, among all that the process sees. `speculation` drafts
    tokens that occurred before: AUTO where measured steps say that it pays. The settings named in `tunable` are measured,
    unless `tuning` has the result, and then written to `tuning_path`; without a path nothing is measured. `stopwords` end every
    output of this model. `step_seconds` and `load_seconds` are the times of a step and of a load of the fake. Something that
    takes more than `hang_seconds`, or for a step also much more than the measured speed of the model explains, ends the
    process. `upstream` and `transformers` are set for the backends of these names.
    """

    model: str
    endpoint: str
    backend: BackendKind = BackendKind.LLAMA
    model_path: str = ""
    context_size: int = 2048
    slots: int = 8
    most_slots: int | None = None
    spare_slots: int | None = None
    threads: int = 0
    threads_batch: int = 0
    turn_key: int | None = None
    cores: tuple[tuple[int, ...], ...] = ()
    gpu_layers: int = 0
    gpus: tuple[str, ...] = ()
    split_mode: SplitMode = SplitMode.LAYER
    tensor_split: tuple[float, ...] = ()
    batch_tokens: int = 2048
    ubatch_tokens: int = 512
    prefill_tokens: int = 512
    kv_layout: KvLayout = KvLayout.AUTO
    cache_type_k: KvType = KvType.F16
    cache_type_v: KvType = KvType.F16
    flash_attention: Switch = Switch.AUTO
    context_shift: bool = False
    speculation: Switch = Switch.OFF
    jump_forward: bool = True
    embeddings: bool = False
    pooling: Pooling = Pooling.AUTO
    lora: list[LoraAdapter] = []
    chat_template: str | None = None
    stopwords: list[str] = []
    step_seconds: float = 0.0
    load_seconds: float = 0.0
    hang_seconds: float = 60.0
    tunable: tuple[str, ...] = ()
    tuning: Tuning | None = None
    tuning_path: str = ""
    upstream: UpstreamConfig | None = None
    transformers: TransformersConfig | None = None


def tuned(config: EngineConfig, tuning: Tuning) -> EngineConfig:
    """The configuration with a tuning in place of what is tunable; `slots` stay AUTO_SLOTS, since memory may hold fewer."""
    found = {name: getattr(tuning, name) for name in config.tunable if name not in ("slots", "prefill_tokens")}
    if "prefill_tokens" in config.tunable:
        found["prefill_tokens"] = max(config.prefill_tokens, tuning.ubatch_tokens)
    return msgspec.structs.replace(config, tuning=tuning, **found)
