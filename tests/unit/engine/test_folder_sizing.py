"""The memory of a folder is estimated before torch is loaded: its lanes and weights as they are allocated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core.models.hf_folder import FolderError
from engine.config import AUTO_SLOTS, BackendKind, EngineConfig, TransformersConfig
from engine.folder_sizing import folder_need, folder_slots
from tests.unit.core.models.test_hf_folder import write_folder

CONFIG = EngineConfig(
    model="m", endpoint="", backend=BackendKind.TRANSFORMERS, slots=3, spare_slots=1, context_size=512
)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}


def config(**changes: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], **SHAPE, **changes}


def test_lanes_are_those_of_all_slots(tmp_path: Path) -> None:
    need = folder_need(write_folder(tmp_path, config(num_key_value_heads=2)), CONFIG)
    assert (
        need.kv_bytes == 2 * 2 * 2 * 16 * 2 * 512 * 4
    )  # keys and values, layers, heads, numbers, bfloat16, tokens, slots
    assert need.weights_bytes == 18 * 2
    assert need.total > need.weights_bytes + need.kv_bytes


def test_the_chosen_format_counts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, config(head_dim=32))
    stored = folder_need(folder, CONFIG)
    options = TransformersConfig(dtype="float32")
    wide = folder_need(folder, msgspec.structs.replace(CONFIG, transformers=options))
    assert wide.kv_bytes == 2 * stored.kv_bytes == 2 * 2 * 2 * 4 * 32 * 2 * 512 * 4
    assert wide.weights_bytes == 2 * stored.weights_bytes


def test_an_encoder_has_no_lanes_and_one_slot(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, config(architectures=["BertModel"]))
    assert folder_need(folder, CONFIG).kv_bytes == 0
    assert folder_slots(folder, msgspec.structs.replace(CONFIG, slots=AUTO_SLOTS), free_bytes=1 << 40) == 1


def test_auto_is_as_many_slots_as_half_of_the_free_memory_holds(tmp_path: Path) -> None:
    folder, auto = write_folder(tmp_path, config()), msgspec.structs.replace(CONFIG, slots=AUTO_SLOTS)
    bytes_of_a_slot = 2 * 2 * 64 * 2 * 512
    assert folder_slots(folder, auto, free_bytes=2 * 6 * bytes_of_a_slot) == 5
    assert folder_slots(folder, CONFIG, free_bytes=0) == 3


@pytest.mark.parametrize("value", [None, "many", -3, 1.5, []])
def test_a_size_that_is_no_number_counts_as_nothing(value: object, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, config(hidden_size=value, head_dim=value, num_attention_heads=value))
    assert folder_need(folder, CONFIG).kv_bytes == 0


def test_a_broken_folder_is_an_error_of_the_folder(tmp_path: Path) -> None:
    (write_folder(tmp_path, config()) / "model.safetensors").write_bytes(json.dumps({}).encode())
    with pytest.raises(FolderError, match="safetensors"):
        folder_need(tmp_path, CONFIG)
