"""Embeddings of folders: equal to the library's own, whatever is in their step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends.base import InputPiece
from engine.config import BackendKind, EngineConfig, Pooling
from engine.errors import ModelFailed
from tests.support.tiny_folders import TinyFolder, make_folder, torch, transformers

from engine.backends.transformers import embedder  # isort: skip
from engine.backends.transformers.backend import TransformersBackend  # isort: skip - after the check for the extra

TEXTS = ("the mill", "river", "the grain by the river, by the mill.", "x", "a mill. " * 6, "grain")


def load(folder: Path, **given: Any) -> TransformersBackend:
    values = {"embeddings": True, "slots": 2, "context_size": 256, "threads": 1, **given}
    return TransformersBackend(
        EngineConfig(model="m", endpoint="", backend=BackendKind.TRANSFORMERS, model_path=str(folder), **values)
    )


def embed(backend: TransformersBackend, texts: tuple[str, ...] = TEXTS) -> np.ndarray:
    assert backend.embedder is not None
    tokens = [backend.tokenizer.encode(text, special=False, add_bos=True, add_end=True) for text in texts]
    return backend.embedder.embed([InputPiece(slot, 0, each, is_last=True) for slot, each in enumerate(tokens)])


def of_the_library(folder: Path, pooling: Pooling) -> np.ndarray:
    """Each text alone, through the library's own attention, pooled by hand."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in TEXTS:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        vector = {Pooling.MEAN: states.mean(0), Pooling.CLS: states[0], Pooling.LAST: states[-1]}[pooling]
        vectors.append(vector / np.linalg.norm(vector))
    return np.stack(vectors)


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.CLS, Pooling.LAST])
@pytest.mark.parametrize("kind", [TinyFolder.BERT, TinyFolder.ROBERTA, TinyFolder.QWEN2, TinyFolder.GEMMA3])
def test_vectors_are_those_of_the_library(kind: TinyFolder, pooling: Pooling, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, kind)
    backend = load(folder, pooling=pooling)
    expected = of_the_library(folder, pooling)
    together = embed(backend)
    assert np.abs(together - expected).max() < 1e-5
    alone = np.concatenate([embed(backend, (text,)) for text in TEXTS])
    assert np.abs(alone - expected).max() < 1e-5
    assert len(np.unique(expected.round(2), axis=0)) >= len(TEXTS) - 1, "the vectors must differ"


@pytest.mark.parametrize("kind", [TinyFolder.BERT, TinyFolder.ROBERTA])
def test_texts_are_packed_where_the_model_allows_it_and_padded_otherwise(
    kind: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path, kind)
    packed: Any = load(folder).embedder
    assert packed._compute == packed._packed
    monkeypatch.setattr(embedder, "PackedAttention", lambda *_: None)  # as a model that computes attention by itself
    backend = load(folder)
    padded: Any = backend.embedder
    assert padded._compute == padded._padded
    assert np.abs(embed(backend) - of_the_library(folder, Pooling.MEAN)).max() < 1e-5


def test_a_model_that_embeds_only_has_no_slots_and_limits_its_inputs(tmp_path: Path) -> None:
    backend = load(make_folder(tmp_path, TinyFolder.ROBERTA))
    assert backend.decoder.slots == 0
    assert backend.embedder is not None
    assert (backend.embedder.dimensions, backend.embedder.max_tokens) == (64, 64)
    assert not backend.embedder.can_split
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    assert load(tmp_path).embedder.max_tokens == 32  # type: ignore[union-attr]


POOLING_FILES = (
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling.CLS),
    ({"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}, Pooling.LAST),
    ({"word_embedding_dimension": 64, "pooling_mode": "mean"}, Pooling.MEAN),
)


@pytest.mark.parametrize(("settings", "pooling"), POOLING_FILES)
def test_the_folder_names_its_pooling(settings: dict[str, object], pooling: Pooling, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, TinyFolder.BERT)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert np.abs(embed(load(folder)) - of_the_library(folder, pooling)).max() < 1e-5


def test_without_a_file_encoders_pool_the_mean_and_decoders_the_last_token(tmp_path: Path) -> None:
    for kind, pooling in ((TinyFolder.BERT, Pooling.MEAN), (TinyFolder.QWEN2, Pooling.LAST)):
        folder = make_folder(tmp_path / kind, kind)
        assert np.abs(embed(load(folder)) - of_the_library(folder, pooling)).max() < 1e-5


def test_a_pooling_that_is_not_supported_is_refused_unless_the_model_file_chooses(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, TinyFolder.BERT)
    (folder / "1_Pooling").mkdir()
    settings = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelFailed, match="set `pooling` to mean, cls or last"):
        load(folder)
    assert load(folder, pooling=Pooling.MEAN).embedder is not None
    modules = [{"type": f"sentence_transformers.models.{name}", "path": name} for name in ("Transformer", "Dense")]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelFailed, match="has a layer Dense after its pooling"):
        load(folder)


def test_an_encoder_without_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFailed, match="Set `embeddings: true`"):
        load(make_folder(tmp_path, TinyFolder.BERT), embeddings=False)
