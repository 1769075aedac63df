"""Estimates of an engine's memory against the sizes and buffers that llama.cpp reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import llama_cpp as llama
import numpy as np
import pytest

from core.models.gguf.gguf_header import GgufError, read_gguf
from core.settings import ROOT
from engine.backends.llama import memory as llama_memory
from engine.backends.llama.context import decoding_context, embedding_context
from engine.backends.llama.memory import measure_slot, resolve_slots
from engine.backends.memory import CPU_SHARE, spare_slots
from engine.config import AUTO_SLOTS, EngineConfig, KvLayout, KvType, LoraAdapter, Switch
from engine.layer_memory import model_memory
from engine.sizing import chosen_slots, memory_need, process_bytes, slot_cost
from tests.support.gguf_bytes import gguf as gguf_bytes
from tests.support.llama_buffers import logged_buffers
from tests.support.loaded import loaded
from tests.support.tiny_models import LAYERS, WINDOW, TinyModel, write_tiny_lora

Models = Mapping[TinyModel, Path]
DEMO = ROOT / "models" / "demo.gguf"
MEBIBYTE = 1 << 20
GENERATORS = [model for model in TinyModel if model is not TinyModel.BERT]
CONFIGS: list[dict[str, object]] = [
    {"slots": 1, "context_size": 512},
    {"slots": 8, "context_size": 2048},
    {"slots": 3, "context_size": 700, "spare_slots": 0},
    {"slots": 8, "context_size": 2048, "kv_layout": KvLayout.UNIFIED},
    {"slots": 8, "context_size": 2048, "kv_layout": KvLayout.UNIFIED, "ubatch_tokens": 64, "spare_slots": 5},
    {"slots": 8, "context_size": 1024, "ubatch_tokens": 128},
    {"slots": 8, "context_size": 2048, "flash_attention": Switch.OFF},
    {"slots": 8, "context_size": 2048, "cache_type_k": KvType.Q8_0, "cache_type_v": KvType.Q4_0},
]


def config(**given: object) -> EngineConfig:
    return EngineConfig(model="m", endpoint="", threads=1, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", TinyModel)
def test_weights_and_parameters_are_those_of_the_loaded_model(tiny_models: Models, model: TinyModel) -> None:
    header = read_gguf(tiny_models[model])
    with loaded(tiny_models[model]) as pointer:
        assert header.tensor_bytes == llama.llama_model_size(pointer)
        assert header.num_parameters == llama.llama_model_n_params(pointer)
        assert header.num_layers == llama.llama_model_n_layer(pointer)


@pytest.mark.parametrize("given", CONFIGS, ids=str)
@pytest.mark.parametrize("model", [*GENERATORS, None], ids=str)
def test_kv_and_compute_are_the_buffers_that_llama_cpp_allocates(
    tiny_models: Models, model: TinyModel | None, given: dict[str, object]
) -> None:
    path = DEMO if model is None else tiny_models[model]
    wanted = config(**given)
    header = read_gguf(path)
    need = memory_need(header, wanted)
    with loaded(path) as pointer, logged_buffers() as buffers:
        llama.llama_free(decoding_context(pointer, wanted, wanted.slots + spare_slots(wanted)))
    assert need.kv_bytes / MEBIBYTE == pytest.approx(buffers.total("KV", "RS"), abs=0.02)  # the log has two decimals
    compute = buffers.total("compute", "output")
    assert compute * 0.8 - 0.2 <= (need.compute_bytes - process_bytes(header)) / MEBIBYTE <= compute * 1.4 + 0.2


@pytest.mark.parametrize("given", [{}, {"cache_type_k": KvType.Q8_0, "cache_type_v": KvType.F32}], ids=str)
@pytest.mark.parametrize("model", TinyModel)
def test_the_cost_of_a_slot_is_the_measured_one(
    tiny_models: Models, model: TinyModel, given: dict[str, object]
) -> None:
    wanted = config(**given)
    with loaded(tiny_models[model]) as pointer:
        assert slot_cost(read_gguf(tiny_models[model]), wanted) == measure_slot(pointer, wanted)


@pytest.mark.parametrize("model", TinyModel)
def test_automatic_slots_are_those_that_the_engine_chooses(
    tiny_models: Models, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = read_gguf(tiny_models[model])
    with loaded(tiny_models[model]) as pointer:
        for free in (100_000, 3_000_000, 40_000_000, 10**12):
            for given in ({}, {"spare_slots": 3}, {"batch_tokens": 32}):
                wanted = config(slots=AUTO_SLOTS, context_size=600, **given)
                monkeypatch.setattr(llama_memory, "host_bytes", lambda free=free: int(free * CPU_SHARE))
                assert chosen_slots(header, wanted, free_bytes=free) == resolve_slots(pointer, wanted)
    assert chosen_slots(header, config(slots=5), free_bytes=0) == 5


def test_a_gpu_holds_more_slots(tiny_models: Models) -> None:
    header, wanted = read_gguf(tiny_models[TinyModel.LLAMA]), config(slots=AUTO_SLOTS)
    assert [chosen_slots(header, wanted, free_bytes=10**12, on_gpu=on_gpu) for on_gpu in (False, True)] == [32, 128]


@pytest.mark.parametrize("model", TinyModel)
def test_a_model_of_embeddings_needs_a_context_for_them(tiny_models: Models, model: TinyModel) -> None:
    header = read_gguf(tiny_models[model])
    wanted = config(slots=2, spare_slots=1, context_size=400, prefill_tokens=128, embeddings=True)
    with loaded(tiny_models[model]) as pointer, logged_buffers() as buffers:
        if model is not TinyModel.BERT:
            llama.llama_free(decoding_context(pointer, wanted, 3))
        llama.llama_free(embedding_context(pointer, wanted, 400, 128))
    assert memory_need(header, wanted).kv_bytes / MEBIBYTE == pytest.approx(buffers.total("KV", "RS"), abs=0.02)


def test_adapters_add_their_files(tiny_models: Models, tmp_path: Path) -> None:
    header, adapter = read_gguf(tiny_models[TinyModel.LLAMA]), write_tiny_lora(tmp_path / "a.gguf")
    needs = [memory_need(header, config(lora=lora)) for lora in ([], [LoraAdapter(path=str(adapter))])]
    assert needs[1].weights_bytes - needs[0].weights_bytes == adapter.stat().st_size
    assert needs[1].total - needs[0].total == adapter.stat().st_size


def metadata_model(path: Path, architecture: str, numbers: Mapping[str, object], tensors: list[str]) -> Path:
    """Write a model of metadata and tensors of one number, for architectures that are too large to be written here."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in numbers.items():
        add = writer.add_array if isinstance(value, list) else writer.add_uint32
        add(f"{architecture}.{key}", value)  # type: ignore[arg-type]
    for name in tensors:
        writer.add_tensor(name, np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def shape(layers: int, **given: object) -> dict[str, object]:
    usual = {"block_count": layers, "embedding_length": 64, "attention.head_count": 4}
    return usual | {key.replace("__", ".", 1): value for key, value in given.items()}


def test_latent_attention_keeps_keys_only(tmp_path: Path) -> None:
    numbers = shape(2, attention__head_count_kv=1, attention__key_length=576, attention__value_length=512)
    numbers |= {"attention.key_length_mla": 192, "attention.value_length_mla": 128}
    memory = model_memory(read_gguf(metadata_model(tmp_path / "m.gguf", "deepseek2", numbers, ["blk.0.attn_q.weight"])))
    assert [(layer.keys, layer.values) for layer in memory.layers] == [(576, 0)] * 2


def test_layers_with_fewer_heads_keep_less(tmp_path: Path) -> None:
    numbers = shape(3, attention__head_count_kv=[4, 0, 2])
    memory = model_memory(read_gguf(metadata_model(tmp_path / "m.gguf", "deci", numbers, ["blk.0.attn_q.weight"])))
    assert [(layer.keys, layer.values) for layer in memory.layers] == [(64, 64), (0, 0), (32, 32)]


@pytest.mark.parametrize(
    ("architecture", "given", "windowed"),
    [
        ("gemma2", {}, "10101010"),
        ("gemma3", {"attention__sliding_window": 32}, "11111011"),
        ("gemma3", {"attention__sliding_window": 32, "attention__sliding_window_pattern": 3}, "11011011"),
        ("gemma3", {}, "00000000"),
        ("smallthinker", {"attention__sliding_window": 32}, "01110111"),
        ("llama4", {}, "11101110"),
        ("llama4", {"attention__sliding_window": 0}, "00000000"),
        ("phi3", {"attention__sliding_window": 32}, "00000000"),
        ("qwen2", {"attention__sliding_window": 32}, "00000000"),
        ("gpt-oss", {"attention__sliding_window": 32, "attention__sliding_window_pattern": [1, 1, 0]}, "11000000"),
    ],
)
def test_windows_are_those_of_the_architecture(
    tmp_path: Path, architecture: str, given: dict[str, object], windowed: str
) -> None:
    path = metadata_model(tmp_path / "m.gguf", architecture, shape(8, **given), ["blk.0.attn_q.weight"])
    assert "".join(str(int(layer.is_windowed)) for layer in model_memory(read_gguf(path)).layers) == windowed


def test_shared_layers_and_draft_layers_keep_nothing(tmp_path: Path) -> None:
    numbers = shape(6, attention__shared_kv_layers=2, attention__sliding_window=8)
    shared = model_memory(read_gguf(metadata_model(tmp_path / "g.gguf", "gemma4", numbers, ["t"])))
    assert [layer.keys > 0 for layer in shared.layers] == [True] * 4 + [False] * 2
    drafts = model_memory(
        read_gguf(metadata_model(tmp_path / "d.gguf", "glm4moe", shape(6, nextn_predict_layers=1), ["t"]))
    )
    assert len(drafts.layers) == 5


def test_recurrent_layers_are_found_by_their_tensors(tmp_path: Path) -> None:
    ssm: dict[str, object] = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16, "ssm.group_count": 2}
    tensors = [
        "blk.0.ssm_in.weight",
        "blk.0.attn_qkv.weight",
        "blk.1.attn_k.weight",
        "blk.2.ssm_in.weight",
        "blk.2.attn_k.weight",
    ]
    path = metadata_model(tmp_path / "m.gguf", "qwen3next", shape(3, attention__head_count_kv=2) | ssm, tensors)
    state = 3 * (128 + 2 * 2 * 16) + 16 * 128
    assert [(layer.keys, layer.state) for layer in model_memory(read_gguf(path)).layers] == [
        (0, state),
        (32, 0),
        (32, state),
    ]
    wkv = shape(2, wkv__head_size=16) | {"attention.head_count": 0}
    rwkv = model_memory(read_gguf(metadata_model(tmp_path / "r.gguf", "rwkv7", wkv, ["blk.0.time_mix_w1.weight"])))
    assert [(layer.keys, layer.state) for layer in rwkv.layers] == [(0, 64 * (2 + 16)), (0, 0)]


def test_the_window_of_the_tiny_model_limits_its_memory(tiny_models: Models) -> None:
    memory = model_memory(read_gguf(tiny_models[TinyModel.GEMMA3]))
    assert (memory.window, [layer.is_windowed for layer in memory.layers]) == (WINDOW, [True, False])
    assert len(memory.layers) == LAYERS


@pytest.mark.parametrize("key", ["block_count", "attention.head_count", "attention.head_count_kv", "embedding_length"])
def test_metadata_of_no_model_is_an_error_that_names_the_key(tmp_path: Path, key: str) -> None:
    numbers: dict[str, int | str] = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
    }
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(numbers | {f"llama.{key}": "many"}))
    with pytest.raises(GgufError, match=f"m.gguf: llama.{key} is no whole number"):
        memory_need(read_gguf(path), config())
