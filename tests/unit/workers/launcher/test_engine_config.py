"""Engine configuration: each key of a model file reaches the engine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import yaml

from core.models.model_files import ModelConfig, load_model
from core.settings import Settings
from engine.config import AUTO_SLOTS, EngineConfig
from workers.launcher.engine_config import engine_config

# Every key an engine has, at a value that is not its default.
KEYS = {
    "context_size": 4096,
    "slots": 3,
    "spare_slots": 2,
    "threads": 5,
    "threads_batch": 6,
    "gpu_layers": 7,
    "batch_tokens": 1024,
    "ubatch_tokens": 256,
    "prefill_tokens": 128,
    "kv_layout": "unified",
    "cache_type_k": "q8_0",
    "cache_type_v": "q4_0",
    "flash_attention": "on",
    "context_shift": True,
    "speculation": True,
    "jump_forward": False,
    "embeddings": True,
    "pooling": "last",
    "lora": [{"path": "a.gguf", "scale": 0.5}],
    "chat_template": "{{ messages }}",
    "stopwords": ["###"],
    "step_seconds": 0.5,
}


def load(folder: Path, **keys: object) -> ModelConfig:
    for name in ("w.gguf", "a.gguf"):
        (folder / name).write_bytes(b"GGUF")
    (folder / "m.yaml").write_text(yaml.safe_dump({"name": "m", "parameters": {"model": "w.gguf"}, **keys}))
    return load_model(folder / "m.yaml")


def test_every_key_of_a_model_file_reaches_its_engine(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    config = msgspec.to_builtins(engine_config(settings, load(tmp_path, **KEYS), "cuda:0"))
    adapter = {"path": str((tmp_path / "a.gguf").resolve()), "scale": 0.5}
    assert config | KEYS | {"lora": [adapter]} == config
    defaults = msgspec.to_builtins(EngineConfig(model="", endpoint=""))
    assert not [key for key in KEYS if config[key] == defaults[key]]


def test_slots_come_from_the_model_file_else_from_the_settings(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, slots=5)
    assert engine_config(settings, load(tmp_path), "cpu").slots == 5
    assert engine_config(settings, load(tmp_path, slots=9), "cpu").slots == 9
    assert engine_config(settings, load(tmp_path, slots="auto"), "cpu").slots == AUTO_SLOTS
    assert engine_config(settings, load(tmp_path, slots="auto", backend="fake"), "cpu").slots == 5


def test_a_cpu_engine_has_no_gpu_layers(tmp_path: Path) -> None:
    assert engine_config(Settings(state_dir=tmp_path), load(tmp_path, gpu_layers=7), "cpu").gpu_layers == 0


def test_the_hang_limit_comes_from_the_settings(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, engine_hang_seconds=7)
    assert engine_config(settings, load(tmp_path), "cpu").hang_seconds == 7
