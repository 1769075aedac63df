"""Slots by memory: the arithmetic, and measurements of real models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from engine.backends.llama import memory as llama_memory
from engine.backends.llama.memory import measure_slot, resolve_slots
from engine.backends.memory import SlotCost, auto_slots, available_bytes
from engine.config import AUTO_SLOTS, EngineConfig, KvType, Switch
from tests.support.loaded import loaded
from tests.support.tiny_models import HEAD, HEADS, LAYERS, WIDTH, TinyModel

Models = Mapping[TinyModel, Path]
MEMINFO = "MemTotal:       24684096 kB\nMemFree:  1 kB\nMemAvailable:   1000 kB\n"
KV_NUMBERS = 2 * HEADS * HEAD  # per token and attention layer
CELL_BYTES = 32  # position and sequence of a token, in the state as llama.cpp writes it
STATE_BYTES = 4 * 2 * WIDTH * (16 + 3)  # per recurrent layer: its state, and the last inputs of its convolution


def config(**given: object) -> EngineConfig:
    return EngineConfig(model="m", endpoint="", **given)  # type: ignore[arg-type]


def test_slots_fill_the_memory_within_their_bounds() -> None:
    cost = SlotCost(bytes_per_token=100, bytes_per_slot=1000)
    slot = 1000 + 100 * 512
    assert cost.bytes_for(512) == slot
    assert auto_slots(cost, context_size=512, memory_bytes=5 * slot + 1, most=32) == 5
    assert auto_slots(cost, context_size=512, memory_bytes=5 * slot - 1, most=32) == 4
    assert auto_slots(cost, context_size=512, memory_bytes=slot * 1000, most=32) == 32
    assert auto_slots(cost, context_size=512, memory_bytes=10, most=32) == 1


def test_a_room_costs_as_much_as_the_cells_llama_cpp_gives_it() -> None:
    cost = SlotCost(bytes_per_token=1)
    assert [cost.bytes_for(size) for size in (1, 256, 257, 600)] == [256, 256, 512, 768]


def test_memory_is_limited_by_what_is_available_and_by_the_cgroup() -> None:
    assert available_bytes(MEMINFO) == 1000 * 1024
    assert available_bytes(MEMINFO, limit="max\n", used="5\n") == 1000 * 1024
    assert available_bytes(MEMINFO, limit="500000\n", used="200000\n") == 300000
    assert available_bytes(MEMINFO, limit="500000", used="600000") == 0


@pytest.mark.parametrize(
    ("model", "attention_layers", "recurrent_layers"),
    [
        (TinyModel.LLAMA, LAYERS, 0),
        (TinyModel.GEMMA3, LAYERS, 0),
        (TinyModel.JAMBA, 1, 1),
        (TinyModel.MAMBA, 0, LAYERS),
    ],
)
def test_a_slot_is_measured_as_its_layers_are(
    tiny_models: Models, model: TinyModel, attention_layers: int, recurrent_layers: int
) -> None:
    with loaded(tiny_models[model]) as pointer:
        cost = measure_slot(pointer, config())
    assert cost is not None
    least = attention_layers * KV_NUMBERS * 2
    assert least <= cost.bytes_per_token <= least + CELL_BYTES
    assert recurrent_layers * STATE_BYTES <= cost.bytes_per_slot <= recurrent_layers * STATE_BYTES + 256


def test_quantised_keys_and_values_cost_less(tiny_models: Models) -> None:
    with loaded(tiny_models[TinyModel.LLAMA]) as pointer:
        costs = [
            measure_slot(pointer, config(cache_type_k=kind, cache_type_v=kind))
            for kind in (KvType.F32, KvType.F16, KvType.Q8_0, KvType.Q5_1, KvType.Q5_0, KvType.Q4_1, KvType.Q4_0)
        ]
    sizes = [cost.bytes_per_token for cost in costs if cost is not None]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 7


def test_auto_slots_fit_beside_the_spare_ones(tiny_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = config(slots=AUTO_SLOTS, context_size=256, batch_tokens=64)
    with loaded(tiny_models[TinyModel.LLAMA]) as pointer:
        cost = measure_slot(pointer, automatic)
        assert cost is not None
        monkeypatch.setattr(llama_memory, "host_bytes", lambda: 10 * cost.bytes_for(256))
        assert resolve_slots(pointer, automatic) == 8, "two spare ones"
        assert resolve_slots(pointer, config(slots=AUTO_SLOTS, context_size=256, spare_slots=4)) == 6
        assert resolve_slots(pointer, config(slots=AUTO_SLOTS, context_size=256, spare_slots=40)) == 1


def test_auto_slots_have_an_upper_limit(tiny_models: Models) -> None:
    with loaded(tiny_models[TinyModel.LLAMA]) as pointer:
        assert resolve_slots(pointer, config(slots=AUTO_SLOTS)) == 32
        assert resolve_slots(pointer, config(slots=AUTO_SLOTS, batch_tokens=8)) == 8
        assert resolve_slots(pointer, config(slots=5)) == 5


def test_an_encoder_needs_no_slots(tiny_models: Models) -> None:
    with loaded(tiny_models[TinyModel.BERT]) as pointer:
        assert measure_slot(pointer, config(flash_attention=Switch.OFF)) is None
        assert resolve_slots(pointer, config(slots=AUTO_SLOTS)) == 1
