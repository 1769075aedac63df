"""Model files written for LocalAI: keys that mean the same are taken, others are refused with the way to write them here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import ConfigError
from core.models.engine_options import BackendKind
from core.models.fields import localai
from core.models.model_files import ModelConfig, Parameters, load_model


def load(folder: Path, text: str) -> ModelConfig:
    (folder / "m.yaml").write_text(text)
    return load_model(folder / "m.yaml")


def test_a_file_of_theirs_is_taken_as_it_is(tmp_path: Path) -> None:
    model = load(
        tmp_path,
        """
name: luna
description: A model for conversation.
usage: Ask it.
backend: llama-cpp
f16: true
mmap: true
mmlock: false
cuda: false
threads: 4
gpu_layers: 99
context_size: 4096
embeddings: true
stopwords: ["</s>"]
known_usecases: [chat, FLAG_COMPLETION]
template: {use_tokenizer_template: true}
tensor_split: "3,1"
devices: [cuda:0, cuda:1]
lora_adapter: extra.gguf
lora_scale: 0.5
parameters: {model: luna.gguf, temperature: 0.3, top_k: 40, seed: -1, batch: 256, f16: true}
""",
    )
    assert (model.backend, model.threads, model.gpu_layers, model.context_size) == (BackendKind.LLAMA, 4, 99, 4096)
    assert (model.batch_tokens, model.tensor_split, model.stopwords) == (256, (3.0, 1.0), ("</s>",))
    assert [(Path(each.path).name, each.scale) for each in model.lora] == [("extra.gguf", 0.5)]
    assert (model.parameters.temperature, model.parameters.top_k, model.parameters.seed) == (0.3, 40, None)


@pytest.mark.parametrize("name", ["llama", "llama-cpp", "llama.cpp", "llama-stable"])
def test_their_names_of_llama_cpp_are_ours(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, f"name: m\nbackend: {name}\nparameters: {{model: a.gguf}}\n").backend is BackendKind.LLAMA


REFUSED: dict[str, tuple[str, str]] = {
    "vllm": (
        "backend: vllm",
        "line 2: backend: vllm runs as a server: write `backend: openai` and `command: vllm serve ",
    ),
    "chat template": (
        "template:\n  chat: |\n    {{.Input}}",
        "line 3: template.chat: is a template of Go: write a Jinja template as `chat_template`, or remove it",
    ),
    "completion template": ("template: {completion: x}", "line 2: template.completion: is a template of Go"),
    "own template": ("template: {use_tokenizer_template: false}", "template.use_tokenizer_template: the model's own"),
    "f16 off": ("f16: false", "line 2: f16: keys and values are f16 already; for f32 write `cache_type_k: f32`"),
    "f16 as text": ("f16: 'yes'", "line 2: f16: keys and values are f16 already"),
    "mmap off": ("mmap: false", "line 2: mmap: weights are always mapped into memory; remove it."),
    "mmlock": ("mmlock: true", "line 2: mmlock: memory is not locked; remove it, and set `pinned: true`"),
    "system prompt": ("system_prompt: Be kind.", "line 2: system_prompt: send it as a message of the role system."),
    "mirostat": ("parameters: {model: a.gguf, mirostat: 2}", "line 2: parameters.mirostat: is not supported; use"),
    "their alias": ("alias: other", "line 2: alias: write `aliases` in the file of that model."),
    "their failover": ("failover: {models: [a]}", "line 2: failover: write `fallback: [OTHER]`."),
    "vllm option": ("gpu_memory_utilization: 0.9", "line 2: gpu_memory_utilization: is an option of vLLM: write"),
    "rope": ("rope_freq_base: 10000", "line 2: rope_freq_base: is read from the weights; remove it."),
    "images": ("known_usecases: [image]", "line 2: known_usecases: only chat, completion and embeddings are served"),
    "split": ("tensor_split: a,b", "line 2: tensor_split: write a list of numbers, such as [3, 1]."),
    "scales": ("lora_adapters: [a, b]\nlora_scales: [1]", "line 2: lora_adapters: write `lora`, a list of"),
    "unknown": ("gpu_layer: 3", "line 2: there is no key 'gpu_layer'; did you mean 'gpu_layers'?"),
    "a backend that nothing is": ("backend: whisper", "line 2: backend must be llama, transformers, openai or fake"),
}


@pytest.mark.parametrize(("keys", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_key_of_theirs_without_a_meaning_here_is_refused_with_advice(tmp_path: Path, keys: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"name: m\n{keys}\n")
    assert said in str(caught.value)


def test_no_key_of_theirs_hides_one_of_ours() -> None:
    ours = {*ModelConfig.model_fields, *Parameters.model_fields}
    assert not ours & {*localai._HARMLESS, *localai._INSTEAD, *localai._DESCRIPTIONS, "template", "batch"}
    values: dict[str, Any] = {"name": "m", "backend": "fake", "parameters": {"top_p": 1.0}}
    assert localai.translate(values) == yaml.safe_load(yaml.safe_dump(values)), "a file of ours stays as it is"
