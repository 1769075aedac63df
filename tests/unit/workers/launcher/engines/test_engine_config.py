"""Engine configuration: each key of a model file reaches the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from core.cpu_cores import Cores
from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.models.engine_options import SplitMode
from core.models.model_files import ModelConfig, load_model
from core.settings import Settings
from engine.config import AUTO_SLOTS, EngineConfig, TransformersConfig, UpstreamConfig
from workers.launcher.engines.engine_config import engine_config
from workers.launcher.engines.engine_process import load_limit

CORES = Cores(cpus=((0, 4), (1, 5), (2, 6), (3, 7)))

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
    "kv_layout": "split",
    "cache_type_k": "q8_0",
    "cache_type_v": "q4_0",
    "flash_attention": "on",
    "context_shift": True,
    "speculation": "on",
    "jump_forward": False,
    "embeddings": True,
    "pooling": "last",
    "lora": [{"path": "a.gguf", "scale": 0.5}],
    "chat_template": "{{ messages }}",
    "stopwords": ["###"],
}


def load(folder: Path, **keys: object) -> ModelConfig:
    for name in ("w.gguf", "a.gguf"):
        (folder / name).write_bytes(b"GGUF")
    (folder / "m.yaml").write_text(yaml.safe_dump({"name": "m", "parameters": {"model": "w.gguf"}, **keys}))
    return load_model(folder / "m.yaml")


def test_every_key_of_a_model_file_reaches_its_engine(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    config = msgspec.to_builtins(engine_config(settings, load(tmp_path, **KEYS), "cuda:0", CORES))
    adapter = {"path": str((tmp_path / "a.gguf").resolve()), "scale": 0.5}
    assert config | KEYS | {"lora": [adapter]} == config
    defaults = msgspec.to_builtins(EngineConfig(model="", endpoint=""))
    assert not [key for key in KEYS if config[key] == defaults[key]]


def test_the_layout_of_memory_that_is_shifted_is_not_measured(tmp_path: Path) -> None:
    tunable = [engine_config(Settings(state_dir=tmp_path), load(tmp_path, **keys), "cpu", CORES).tunable
               for keys in ({}, {"context_shift": True})]  # fmt: skip
    assert ("kv_layout" in tunable[0], "kv_layout" in tunable[1]) == (True, False)


def test_the_times_of_the_fake_reach_its_engine(tmp_path: Path) -> None:
    model = load(tmp_path, backend="fake", step_seconds=0.5, load_seconds=2)
    config = engine_config(Settings(state_dir=tmp_path), model, "cpu", CORES)
    assert (config.step_seconds, config.load_seconds) == (0.5, 2)


def test_slots_come_from_the_model_file_else_from_the_settings(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, slots=5)
    assert engine_config(settings, load(tmp_path), "cpu", CORES).slots == 5
    assert engine_config(settings, load(tmp_path, slots=9), "cpu", CORES).slots == 9
    assert engine_config(settings, load(tmp_path, slots="auto"), "cpu", CORES).slots == AUTO_SLOTS
    assert engine_config(settings, load(tmp_path, slots="auto", backend="fake"), "cpu", CORES).slots == 5


def test_a_cpu_engine_has_no_gpu_layers(tmp_path: Path) -> None:
    assert engine_config(Settings(state_dir=tmp_path), load(tmp_path, gpu_layers=7), "cpu", CORES).gpu_layers == 0


def test_a_model_is_on_one_gpu_or_divided_among_those_it_names(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    one = engine_config(settings, load(tmp_path), "cuda:1", CORES)
    assert (one.gpus, one.split_mode, one.tensor_split) == ((), SplitMode.NONE, ())
    devices = [
        Device(name=f"cuda:{number}", kind=DeviceKind.CUDA, total_bytes=size) for number, size in ((1, 24), (0, 8))
    ]
    keys = {"devices": ["cuda:1", "cuda:0"], "split_mode": "row"}
    divided = engine_config(settings, load(tmp_path, **keys), "cuda:1", CORES, devices)
    assert (divided.gpus, divided.split_mode, divided.tensor_split) == ((), SplitMode.ROW, (0.75, 0.25))
    assert (
        engine_config(settings, load(tmp_path, devices=keys["devices"]), "cuda:1", CORES, devices).split_mode == "layer"
    )


def test_a_card_that_no_variable_selects_is_selected_by_its_name(tmp_path: Path) -> None:
    assert engine_config(Settings(state_dir=tmp_path), load(tmp_path), "vulkan:1", CORES).gpus == ("Vulkan1",)


def test_some_of_the_cpus_are_a_cpu(tmp_path: Path) -> None:
    config = engine_config(Settings(state_dir=tmp_path), load(tmp_path, gpu_layers=7), "cpu@0-3", CORES)
    assert (config.gpu_layers, config.gpus) == (0, ())
    assert config.turn_key is not None


def test_the_hang_limit_comes_from_the_settings(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, engine_hang_seconds=7)
    assert engine_config(settings, load(tmp_path), "cpu", CORES).hang_seconds == 7


def test_threads_are_those_of_the_model_file_else_one_per_core(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    assert engine_config(settings, load(tmp_path), "cpu", CORES).threads == 4
    assert engine_config(settings, load(tmp_path, threads=3), "cpu", CORES).threads == 3
    limited = Cores(cpus=CORES.cpus, quota=1.5)
    assert engine_config(settings, load(tmp_path), "cpu", limited).threads == 2


@pytest.mark.parametrize(
    "keys", [{}, {"threads": 4}, {"threads": 1, "threads_batch": 4}, {"threads_batch": 1}, {"threads": 16}]
)
def test_engines_that_use_all_cores_take_turns(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert turn_key(tmp_path, **keys) is not None
    assert turn_key(tmp_path, **keys) == turn_key(tmp_path / "another worker")


def test_engines_of_a_gpu_machine_that_use_no_gpu_take_turns(tmp_path: Path) -> None:
    assert turn_key(tmp_path, device="cuda:0", gpu_layers=0) == turn_key(tmp_path)


@pytest.mark.parametrize("keys", [{"threads": 3}, {"backend": "fake"}, {"device": "cuda:0"}])
def test_engines_with_cores_of_their_own_and_on_a_gpu_take_none(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert turn_key(tmp_path, **keys) is None


def test_engines_on_other_cores_or_under_another_quota_do_not_wait_for_each_other(tmp_path: Path) -> None:
    others = Cores(cpus=((8,), (9,), (10,), (11,)))
    limited = Cores(cpus=CORES.cpus, quota=1.5, group="user.slice/app.service")
    keys = [turn_key(tmp_path, cores) for cores in (CORES, others, limited)]
    assert len(set(keys)) == 3
    assert all(key is not None and 0 < key < 1 << 31 for key in keys)


def test_threads_are_bound_only_if_each_core_gets_one(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    limited = Cores(cpus=CORES.cpus, quota=1.5)
    assert engine_config(settings, load(tmp_path), "cpu", CORES).cores == CORES.cpus
    assert engine_config(settings, load(tmp_path), "cpu", limited).cores == ()  # others may have the same first cores
    assert engine_config(settings, load(tmp_path, threads=8), "cpu", CORES).cores == ()
    assert engine_config(settings, load(tmp_path, threads=2), "cpu", CORES).cores == ()
    assert engine_config(settings, load(tmp_path), "cuda:0", CORES).cores == ()


def turn_key(folder: Path, cores: Cores = CORES, device: str = "cpu", **keys: object) -> int | None:
    folder.mkdir(exist_ok=True)
    return engine_config(Settings(state_dir=folder), load(folder, **keys), device, cores).turn_key


def test_a_folder_is_computed_by_transformers_with_its_options(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    keys = {"parameters": {"model": "folder"}, "backend": "transformers", "dtype": "bfloat16", "attention": "sdpa"}
    settings = Settings(state_dir=tmp_path)
    on_cpu = engine_config(settings, load(tmp_path, **keys), "cpu", CORES)
    assert on_cpu.model_path == str(tmp_path / "folder")
    assert on_cpu.transformers == TransformersConfig(dtype="bfloat16", device="cpu", attention="sdpa")
    assert on_cpu.turn_key is not None, "it takes turns with all that compute on these cores"
    on_gpu = engine_config(settings, load(tmp_path, **keys), "cuda:1", CORES)
    assert on_gpu.transformers == TransformersConfig(dtype="bfloat16", device="cuda:0", attention="sdpa")
    assert on_gpu.turn_key is None
    pinned = engine_config(settings, load(tmp_path, **keys, device="cpu"), "cuda:1", CORES)
    assert pinned.turn_key is not None


def test_every_key_of_a_server_upstream_reaches_its_engine(tmp_path: Path) -> None:
    keys = {
        "backend": "openai",
        "parameters": {},
        "model": "org/real",
        "api_key_env": "KEY",
        "headers": {"X-Title": "a"},
        "timeout_seconds": 5.0,
        "max_concurrency": 7,
    }
    settings = Settings(state_dir=tmp_path, line_attempts=4)
    there = load(tmp_path, **keys, base_url=["http://a", "http://b/v1"])
    assert engine_config(settings, there, "cpu", CORES).upstream == UpstreamConfig(
        model="org/real",
        base_urls=("http://a/v1", "http://b/v1"),
        api_key_env="KEY",
        headers={"X-Title": "a"},
        timeout_seconds=5.0,
        max_concurrency=7,
        max_attempts=4,
    )
    started = {"command": "serve 'a b' {port}", "port": 81, "health_path": "/h", "ready_seconds": 900.0}
    config = engine_config(settings, load(tmp_path, backend="openai", parameters={}, **started), "cpu", CORES)
    assert config.upstream == UpstreamConfig(
        model="m", command=("serve", "a b", "{port}"), port=81, health_path="/h", ready_seconds=900.0, max_attempts=4
    )
    assert load_limit(config) > 900, "its engine gives up first, with the words of the server"
    assert load_limit(engine_config(settings, there, "cpu", CORES)) == 600
