"""LocalAI's keys of a model file: those that mean the same are taken, any other is refused with the way to write it here.

Source of their names and meanings: LocalAI's reference of model configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from core.models.yaml_file import Place

Values = dict[str, Any]  # Any: YAML


class Refused(Exception):
    """A key that has no meaning here; `advice` is a sentence on what to do instead, without its full stop."""

    def __init__(self, keys: Place, advice: str) -> None:
        super().__init__(advice)
        self.keys = keys
        self.advice = advice


_BACKENDS: Final = {"llama-cpp": "llama", "llama.cpp": "llama", "llama-stable": "llama"}
_SERVERS: Final = {
    "vllm": "vllm serve MODEL --port {port}",
    "sglang": "python -m sglang.launch_server --model-path MODEL --port {port}",
}
# Keys with the values that change nothing here, and the advice on others.
_HARMLESS: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "f16": ((True,), "keys and values are f16 already; for f32 write `cache_type_k: f32` and `cache_type_v: f32`"),
    "mmap": ((True,), "weights are always mapped into memory; remove it"),
    "mmlock": ((False,), "memory is not locked; remove it, and set `pinned: true` to keep the model loaded"),
    "low_vram": ((False,), "write `gpu_layers`, the number of layers on the GPU"),
    "numa": ((False,), "start the service under numactl; remove it"),
    "cuda": ((False,), "write `devices: [cuda]`"),
    "debug": ((False,), "set the environment variable MILLRACE_LOG_LEVEL=debug; remove it"),
    "disabled": ((False,), "rename the file to another ending, such as .yaml.off"),
    "reranking": ((False,), "models that rank documents are not served"),
    "prompt_cache_all": ((True, False), ""),
    "prompt_cache_ro": ((False,), "common beginnings of prompts are kept in memory by themselves; remove it"),
    "mirostat": ((0,), "is not supported; use `parameters.top_p` or `parameters.min_p`"),
    "n_draft": ((0,), "write `speculation: on`, which drafts tokens from the prompt"),
    "no_kv_offloading": ((False,), "keys and values are where the layers are; write `gpu_layers`"),
}
_DESCRIPTIONS: Final = ("description", "usage")
_USES: Final = frozenset(
    {"chat", "completion", "embeddings", "flag_chat", "flag_completion", "flag_embeddings", "flag_any"}
)
_READ_FROM_WEIGHTS: Final = "is read from the weights; remove it"
_OF_VLLM: Final = (
    "is an option of vLLM: write `backend: openai` and `command: vllm serve MODEL --port {port}` with the option"
)
_NO_CUTTING: Final = "answers are sent as they are; use `stopwords`, or a format in the request"
_NOT_TEXT: Final = "only text models are served; remove it"
_NOT_HERE: Final = "is not a part of this server; remove it"
_OF_REQUESTS: Final = "send it with the request, or remove it"
_INSTEAD: Final[dict[str, str]] = {
    "alias": "write `aliases` in the file of that model",
    "failover": "write `fallback: [OTHER]`",
    "proxy": "write `backend: openai`, `base_url` and `api_key_env`",
    "limits": "write `max_concurrency` for a server upstream, or limit the keys (`millrace keys`)",
    "system_prompt": "send it as a message of the role system",
    "roles": "write a Jinja template as `chat_template`, or remove it: the model's own is used",
    "main_gpu": "write `devices: [cuda:NUMBER]`",
    "rms_norm_eps": _READ_FROM_WEIGHTS,
    "ngqa": _READ_FROM_WEIGHTS,
    "type": _READ_FROM_WEIGHTS,
    "prompt_cache_path": "common beginnings of prompts are kept in memory by themselves; remove it",
    "mirostat_eta": "is not supported; use `parameters.top_p` or `parameters.min_p`",
    "mirostat_tau": "is not supported; use `parameters.top_p` or `parameters.min_p`",
    "draft_model": "write `speculation: on`, which drafts tokens from the prompt without a second model",
    "lora_base": "the adapter is added to the weights of the model; remove it",
    "mmproj": _NOT_TEXT,
    "grammar": "send a grammar with the request: `structured_outputs`",
    "function": "tools and their calls follow the chat template by themselves; remove it",
    "reasoning": "reasoning is found by the chat template; remove it",
    "reasoning_effort": "send it with the request: `chat_template_kwargs`",
    "chat_template_kwargs": "send it with the request",
    "cutstrings": _NO_CUTTING,
    "extract_regex": _NO_CUTTING,
    "trimspace": _NO_CUTTING,
    "trimsuffix": _NO_CUTTING,
    "options": "write each option as a key of this file; docs/models.md lists them",
    "overrides": "write each option as a key of this file; docs/models.md lists them",
    "env": "set the environment of the worker",
    "download_files": "run `millrace models add`, which downloads a model and writes its file",
    "concurrency_groups": "models share the memory of a device; set the setting device_memory",
    "grpc": "engines are processes of the worker; remove it",
    "feature_flags": "remove it",
    "no_mulmatq": "remove it",
    **dict.fromkeys(("rope_freq_base", "rope_freq_scale", "rope_scaling"), _READ_FROM_WEIGHTS),
    **dict.fromkeys(("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"), _READ_FROM_WEIGHTS),
    **dict.fromkeys(("quantization", "load_format", "gpu_memory_utilization", "enforce_eager", "swap_space"), _OF_VLLM),
    **dict.fromkeys(("tensor_parallel_size", "disable_log_stats", "limit_mm_per_prompt"), _OF_VLLM),
    **dict.fromkeys(("diffusers", "step", "tts", "pipeline", "cfg_scale", "clip_skip"), _NOT_TEXT),
    **dict.fromkeys(("mcp", "agent", "pii", "pii_detection", "router", "mitm", "compression"), _NOT_HERE),
    **dict.fromkeys(("n_keep", "tfz", "negative_prompt", "negative_prompt_scale"), "is not supported; remove it"),
    **dict.fromkeys(("n", "echo", "ignore_eos", "language", "tokenizer", "use_fast_tokenizer"), _OF_REQUESTS),
}  # fmt: skip
_TEMPLATES: Final = (
    "is a template of Go: write a Jinja template as `chat_template`, or remove it: the model's own is used"
)


def translate(values: Values) -> Values:
    """Return the keys of a model file with LocalAI's written as ours; raises Refused for one without a meaning here."""
    found = dict(values)
    _translate_backend(found)
    _translate_template(found)
    parameters = found.get("parameters")
    if isinstance(parameters, dict):
        found["parameters"] = parameters = dict(parameters)
        _drop(parameters, ("parameters",))
        if "batch" in parameters:
            found.setdefault("batch_tokens", parameters.pop("batch"))
        if parameters.get("seed") == -1:  # a random one
            del parameters["seed"]
    _drop(found, ())
    for key, convert in _CONVERTED.items():
        if key in found:
            convert(found)
    return found


def _translate_backend(values: Values) -> None:
    backend = values.get("backend")
    if not isinstance(backend, str):
        return
    if backend in _SERVERS:
        advice = f"runs as a server: write `backend: openai` and `command: {_SERVERS[backend]}`"
        raise Refused(("backend",), f"{backend} {advice}")
    values["backend"] = _BACKENDS.get(backend, backend)


def _translate_template(values: Values) -> None:
    template = values.get("template")
    if not isinstance(template, dict):
        return
    for key, value in template.items():
        if key == "use_tokenizer_template" and value is True:
            continue
        advice = "the model's own template is used; remove it" if key == "use_tokenizer_template" else _TEMPLATES
        raise Refused(("template", str(key)), advice)
    del values["template"]


def _drop(values: Values, place: Place) -> None:
    """Remove the keys of LocalAI's that change nothing; raises Refused for those that would."""
    for key in list(values):
        if key in _DESCRIPTIONS and not place:
            del values[key]
        elif key in _HARMLESS:
            harmless, advice = _HARMLESS[key]
            if not any(values[key] is each or (type(each) is int and values[key] == each) for each in harmless):
                raise Refused((*place, key), advice or "write true or false")
            del values[key]
        elif key in _INSTEAD:
            raise Refused((*place, key), _INSTEAD[key])


def _known_usecases(values: Values) -> None:
    uses = values.pop("known_usecases")
    names = {str(use).lower() for use in uses} if isinstance(uses, list) else {str(uses).lower()}
    if names - _USES:
        raise Refused(("known_usecases",), "only chat, completion and embeddings are served; remove the others")


def _batch(values: Values) -> None:
    values.setdefault("batch_tokens", values.pop("batch"))


def _tensor_split(values: Values) -> None:
    parts = values["tensor_split"]
    if isinstance(parts, str):
        try:
            values["tensor_split"] = [float(part) for part in parts.split(",")]
        except ValueError:
            raise Refused(("tensor_split",), "write a list of numbers, such as [3, 1]") from None


def _lora_adapter(values: Values) -> None:
    path, scale = values.pop("lora_adapter"), values.pop("lora_scale", 1.0)
    values.setdefault("lora", [{"path": path, "scale": scale}])


def _lora_adapters(values: Values) -> None:
    paths, scales = values.pop("lora_adapters"), values.pop("lora_scales", None)
    if not isinstance(paths, list) or (
        scales is not None and (not isinstance(scales, list) or len(scales) != len(paths))
    ):
        raise Refused(("lora_adapters",), "write `lora`, a list of `path` and `scale`")
    pairs = zip(paths, scales or [1.0] * len(paths), strict=True)
    values.setdefault("lora", [{"path": path, "scale": scale} for path, scale in pairs])


_CONVERTED: Final[dict[str, Callable[[Values], None]]] = {
    "known_usecases": _known_usecases,
    "batch": _batch,
    "tensor_split": _tensor_split,
    "lora_adapter": _lora_adapter,
    "lora_adapters": _lora_adapters,
}
