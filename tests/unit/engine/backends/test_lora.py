"""LoRA adapters on a tiny model; each test writes its own."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path

import llama_cpp as llama
import numpy as np
import pytest

from engine.backends.llama.context import attach, forget_adapters
from engine.config import LoraAdapter
from engine.errors import ModelFailed
from tests.support.loaded import loaded
from tests.support.tiny_models import WIDTH, TinyModel, write_tiny_lora

TOKENS = [70, 71, 72, 73]


@pytest.fixture
def model(tiny_models: Mapping[TinyModel, Path]) -> Iterator[ctypes.c_void_p]:
    with loaded(tiny_models[TinyModel.LLAMA]) as model:
        yield model


def write(path: Path, **given: object) -> LoraAdapter:
    return LoraAdapter(path=str(write_tiny_lora(path, **given)))  # type: ignore[arg-type]


def logits(model: ctypes.c_void_p, *adapters: LoraAdapter) -> np.ndarray:
    """Logits of the last token, in a new context."""
    parameters = llama.llama_context_default_params()
    parameters.n_ctx, parameters.n_threads_batch = 64, 1
    context = llama.llama_init_from_model(model, parameters)
    try:
        attach(context, model, adapters)
        row = (llama.llama_token * len(TOKENS))(*TOKENS)
        assert llama.llama_decode(context, llama.llama_batch_get_one(row, len(TOKENS))) == 0
        count = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), shape=(count,)).copy()
    finally:
        llama.llama_free(context)


def scaled(adapter: LoraAdapter, scale: float) -> LoraAdapter:
    return LoraAdapter(path=adapter.path, scale=scale)


def test_an_adapter_changes_logits_according_to_its_scale(model: ctypes.c_void_p, tmp_path: Path) -> None:
    adapter = write(tmp_path / "a.gguf")
    plain = logits(model)
    changes = [np.abs(logits(model, scaled(adapter, scale)) - plain).max() for scale in (0.0, 0.05, 1.0)]
    assert changes[0] == 0
    assert 1e-3 < changes[1] < changes[2]


def test_several_adapters_add_up(model: ctypes.c_void_p, tmp_path: Path) -> None:
    adapter = write(tmp_path / "a.gguf")
    twice = logits(model, scaled(adapter, 0.5), scaled(write(tmp_path / "b.gguf"), 0.5))
    assert np.allclose(twice, logits(model, adapter), atol=1e-3)


def test_all_contexts_of_a_model_share_an_adapter(
    model: ctypes.c_void_p, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[bytes] = []
    load = llama.llama_adapter_lora_init
    monkeypatch.setattr(
        llama, "llama_adapter_lora_init", lambda model, path: (loads.append(path), load(model, path))[1]
    )
    adapter = write(tmp_path / "a.gguf")
    first = logits(model, adapter)
    assert np.array_equal(logits(model, adapter), first)
    assert len(loads) == 1, "each would take memory until the model is freed"
    forget_adapters(model)
    assert np.array_equal(logits(model, adapter), first)
    assert len(loads) == 2


def test_a_context_without_adapters_is_unchanged(model: ctypes.c_void_p, tmp_path: Path) -> None:
    before = logits(model)
    logits(model, write(tmp_path / "a.gguf"))
    assert np.array_equal(logits(model), before)


def test_an_adapter_that_does_not_fit_is_reported_by_name(model: ctypes.c_void_p, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing more")
    wrong = [
        write(tmp_path / "shape.gguf", width=WIDTH * 2),
        write(tmp_path / "tensor.gguf", tensor="blk.9.attn_q.weight"),
        write(tmp_path / "architecture.gguf", architecture="gemma3"),
        LoraAdapter(path=str(broken)),
    ]
    for adapter in wrong:
        with pytest.raises(ModelFailed, match=f"{Path(adapter.path).name} is not a LoRA adapter of this model"):
            logits(model, adapter)
    with pytest.raises(ModelFailed, match=r"no LoRA file .*missing\.gguf"):
        logits(model, LoraAdapter(path=str(tmp_path / "missing.gguf")))
