"""Division of a model among GPUs: the structure that llama.cpp gets. This build sees none, so no model is divided here."""

from __future__ import annotations

import ctypes

import llama_cpp as llama
import pytest

from engine.backends.llama.gpus import divide, list_gpus
from engine.backends.llama.memory import _gpu_bytes
from engine.config import EngineConfig, SplitMode
from engine.errors import ModelFailed


def config(**keys: object) -> EngineConfig:
    return EngineConfig(**{"model": "m", "endpoint": "", "gpu_layers": -1, **keys})  # type: ignore[arg-type]


def test_the_parts_and_the_mode_reach_llama() -> None:
    parameters = llama.llama_model_default_params()
    arrays = divide(parameters, config(split_mode=SplitMode.ROW, tensor_split=(0.75, 0.25)))
    assert parameters.split_mode == llama.LLAMA_SPLIT_MODE_ROW
    assert list(parameters.tensor_split[: llama.llama_max_devices()]) == [
        0.75,
        0.25,
        *[0.0] * (llama.llama_max_devices() - 2),
    ]
    assert len(arrays) == 1


def test_devices_are_a_list_that_ends_with_a_null_pointer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.backends.llama.gpus.selected_gpus", lambda _: [0x10, 0x20])
    parameters = llama.llama_model_default_params()
    arrays = divide(parameters, config(gpus=("Vulkan1", "Vulkan0")))
    found = ctypes.cast(parameters.devices, ctypes.POINTER(ctypes.c_void_p))
    assert found[:3] == [0x10, 0x20, None]
    assert arrays


def test_a_model_on_the_cpu_is_not_divided(tmp_path: object) -> None:
    parameters = llama.llama_model_default_params()
    before = parameters.split_mode
    assert divide(parameters, config(gpu_layers=0, split_mode=SplitMode.NONE, gpus=("Vulkan0",))) == []
    assert (parameters.split_mode, parameters.devices) == (before, None)


def test_a_card_that_llama_does_not_see_is_named() -> None:
    assert list_gpus() == []
    with pytest.raises(ModelFailed, match="sees no GPU, and not Vulkan3: use another --device"):
        divide(llama.llama_model_default_params(), config(gpus=("Vulkan3",)))


def test_slots_are_limited_by_the_card_with_the_least_room_for_its_part() -> None:
    assert _gpu_bytes([100, 100], (0.8, 0.2)) == 100
    assert _gpu_bytes([100, 20], (0.5, 0.5)) == 32
    assert _gpu_bytes([100, 20], ()) == 96
