"""GGUF files without a YAML file, as models of the live catalog."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.models import models_folder
from core.models.live_catalog import LiveCatalog
from core.models.models_folder import load_models
from tests.support.model_files import write_model, write_weights


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_folder, "_REPLACE_SECONDS", 0)


@pytest.fixture
def live(tmp_path: Path) -> LiveCatalog:
    """A catalog that has `one` so far."""
    write_model(tmp_path, "one")
    return LiveCatalog(tmp_path)


def test_names_that_differ_in_case_are_two_models(tmp_path: Path) -> None:
    write_weights(tmp_path, "Mine")
    write_weights(tmp_path, "mine")
    assert LiveCatalog(tmp_path).current.names() == ["Mine", "mine"]


def test_bare_weights_are_served_under_their_file_name_until_a_yaml_file_names_them(
    live: LiveCatalog, tmp_path: Path
) -> None:
    write_weights(tmp_path, "gemma:2b.Q4_K_M")
    assert live.refresh()
    bare = live.current.get("gemma:2b.Q4_K_M")
    assert bare is not None
    assert bare.parameters.model == str(tmp_path / "gemma:2b.Q4_K_M.gguf")
    assert load_models(tmp_path).names() == live.current.names()
    write_model(tmp_path, "mine", backend="llama", parameters="{model: 'gemma:2b.Q4_K_M.gguf'}")
    assert live.refresh()
    assert live.current.names() == ["mine", "one"]


def test_an_adapter_that_a_yaml_file_names_is_no_model(tmp_path: Path) -> None:
    write_weights(tmp_path, "adapter")
    write_weights(tmp_path, "base")
    write_model(tmp_path, "mine", backend="llama", parameters="{model: base.gguf}", lora="[{path: adapter.gguf}]")
    assert LiveCatalog(tmp_path).current.names() == ["mine"]


def test_a_yaml_file_comes_before_bare_weights_of_its_name(live: LiveCatalog, tmp_path: Path) -> None:
    write_weights(tmp_path, "one")
    assert not live.refresh()
    assert live.current.models[0].backend == "fake"
    assert set(live.problems) == {"one.gguf"}
    write_weights(tmp_path, "two")
    assert live.refresh()
    write_model(tmp_path, "two", context_size=4096)
    assert live.refresh()
    assert [(model.name, model.backend) for model in live.current.models] == [("one", "fake"), ("two", "fake")]


def test_split_weights_are_one_model_when_every_part_is_there(live: LiveCatalog, tmp_path: Path) -> None:
    write_weights(tmp_path, "big-00001-of-00003")
    write_weights(tmp_path, "big-00003-of-00003")
    assert not live.refresh()
    assert live.problems == {
        "big-00001-of-00003.gguf": "big-00001-of-00003.gguf is a part of a model; its part big-00002-of-00003.gguf is "
        "missing."
    }
    write_weights(tmp_path, "big-00002-of-00003")
    assert live.refresh()
    big = live.current.get("big")
    assert big is not None
    assert big.parameters.model == str(tmp_path / "big-00001-of-00003.gguf")
    (tmp_path / "big-00001-of-00003.gguf").unlink()
    assert live.refresh()
    assert live.current.names() == ["one"]
    assert set(live.problems) == {"big-00002-of-00003.gguf"}


def test_split_weights_that_a_yaml_file_names_are_no_bare_model(tmp_path: Path) -> None:
    for number in (1, 2):
        write_weights(tmp_path, f"big-0000{number}-of-00002")
    write_model(tmp_path, "mine", backend="llama", parameters="{model: big-00001-of-00002.gguf}")
    live = LiveCatalog(tmp_path)
    assert (live.current.names(), live.problems) == (["mine"], {})


def test_a_part_of_absurdly_many_is_looked_at_quickly(tmp_path: Path) -> None:
    for name in ("x-00001-of-99999", "x-00000-of-00000", "x-00009-of-00002"):
        write_weights(tmp_path, name)
    assert len(LiveCatalog(tmp_path).current.names()) == 3


def test_a_second_name_of_the_same_weights_needs_an_alias(tmp_path: Path) -> None:
    write_weights(tmp_path, "b")
    (tmp_path / "a.gguf").symlink_to("b.gguf")
    live = LiveCatalog(tmp_path)
    assert live.current.names() == ["b"]
    assert "a.gguf is the same file as b.gguf" in live.problems["a.gguf"]
