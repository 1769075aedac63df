from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ConfigError
from core.models import ModelBackend, load_models

BAD = {
    "not YAML": ("a: [", "cannot be read as YAML"),
    "a list": ("- a", "is a mapping"),
    "an unknown key": ("name: m\nbackend: fake\ncontext: 5", "context"),
    "a wrong type": ("name: m\nbackend: fake\ncontext_size: big", "context_size"),
    "a backend we do not have": ("name: m\nbackend: gpt", "backend"),
    "no name": ("backend: fake", "name"),
    "a name that cannot be in a URL": ("name: a/b\nbackend: fake", "name"),
    "no weights": ("name: m", "parameters.model"),
    "weights that are not there": ("name: m\nparameters: {model: no.gguf}", "no.gguf"),
    "a temperature out of range": ("name: m\nbackend: fake\nparameters: {temperature: 9}", "parameters.temperature"),
}


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_an_error_that_names_file_and_key(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match="mine.yaml") as caught:
        load_models(tmp_path)
    assert said in str(caught.value)


def test_a_model_is_found_by_name_and_alias(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: one\nbackend: fake\naliases: [uno, ein]\nstopwords: ['###']\n")
    catalog = load_models(tmp_path)
    assert catalog.names() == ["one"]
    found = catalog.get("ein")
    assert found is not None
    assert (found.name, found.backend, found.stopwords) == ("one", ModelBackend.FAKE, ("###",))
    assert catalog.get("zwei") is None


def test_two_models_cannot_share_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: one\nbackend: fake\n")
    (tmp_path / "b.yaml").write_text("name: two\nbackend: fake\naliases: [one]\n")
    with pytest.raises(ConfigError, match="one"):
        load_models(tmp_path)


def test_weights_are_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    (tmp_path / "a.yaml").write_text("name: one\nparameters: {model: w.gguf}\n")
    model = load_models(tmp_path).get("one")
    assert model is not None
    assert model.parameters.model == str((tmp_path / "w.gguf").resolve())


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no models folder"):
        load_models(tmp_path / "nowhere")
