"""GGUF files without a YAML file, as models of the live catalog."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.models import bare_weights, models_folder
from core.models.gguf.gguf_header import read_gguf
from core.models.live_catalog import LiveCatalog
from core.models.models_folder import load_models
from tests.support.gguf_bytes import gguf, tensor
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


def write_part(folder: Path, number: int, count: int = 3) -> Path:
    path = folder / f"big-{number:05}-of-{count:05}.gguf"
    pairs: dict[str, int | str] = {"general.architecture": "llama", "split.count": count, "split.no": number - 1}
    path.write_bytes(gguf({**pairs}, [tensor(f"t{number}", [32])], data=128))
    return path


def test_split_weights_are_one_model_when_every_part_is_there(live: LiveCatalog, tmp_path: Path) -> None:
    first = write_part(tmp_path, 1)
    write_part(tmp_path, 3)
    assert not live.refresh()
    assert set(live.problems) == {first.name}
    assert "big-00002-of-00003.gguf is missing" in live.problems[first.name]
    write_part(tmp_path, 2)
    for _ in range(2):
        live.refresh()
    big = live.current.get("big")
    assert big is not None
    assert big.parameters.model == str(first)
    first.unlink()
    assert live.refresh()
    assert live.current.names() == ["one"]
    for _ in range(2):
        live.refresh()
    assert set(live.problems) == {"big-00002-of-00003.gguf"}
    assert "is part 2 of 3 of a model" in live.problems["big-00002-of-00003.gguf"]


def test_split_weights_that_a_yaml_file_names_are_no_bare_model(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_part(tmp_path, number)
    write_model(tmp_path, "mine", backend="llama", parameters="{model: big-00001-of-00003.gguf}")
    live = LiveCatalog(tmp_path)
    assert (live.current.names(), live.problems) == (["mine"], {})


def test_a_part_of_absurdly_many_is_looked_at_quickly(tmp_path: Path) -> None:
    for name in ("x-00001-of-99999", "x-00000-of-00000", "x-00009-of-00002"):
        write_weights(tmp_path, name)
    assert len(LiveCatalog(tmp_path).current.names()) == 3


def test_a_file_that_grows_is_served_when_it_is_complete(
    live: LiveCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(bare_weights, "read_gguf", lambda path: read.append(path) or read_gguf(path))
    whole = write_weights(tmp_path, "mine").read_bytes()
    file = tmp_path / "mine.gguf"
    problems = []
    for size in (0, 10, len(whole) // 2, len(whole) - 1, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert not live.refresh()
        problems.append(live.problems["mine.gguf"])
    assert problems[1:4] == ["mine.gguf is still being written."] * 3
    assert "mine.gguf is incomplete" in problems[4]
    assert len(read) == 2, "the header is not read at each look while the file grows"
    file.write_bytes(whole)
    assert not live.refresh()
    assert live.refresh()
    assert live.current.names() == ["mine", "one"]
    assert not live.problems


def test_headers_are_read_once(live: LiveCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(write_weights(tmp_path, "mine"), (1e9, 1e9))
    live.refresh()
    monkeypatch.delattr(bare_weights, "read_gguf")
    write_model(tmp_path, "two")
    assert live.refresh()
    assert live.current.names() == ["mine", "one", "two"]


def test_context_and_pooling_are_those_of_the_header(tmp_path: Path) -> None:
    weight = [tensor("t", [32])]
    for name, keys in {"short": {"b.context_length": 512}, "long": {"b.context_length": 9999}, "no": {}}.items():
        (tmp_path / f"{name}.gguf").write_bytes(gguf({"general.architecture": "b", **keys}, weight, data=128))
    (tmp_path / "embed.gguf").write_bytes(gguf({"general.architecture": "b", "b.pooling_type": 3}, weight, data=128))
    models = LiveCatalog(tmp_path).current.models
    assert [(each.name, each.context_size, each.embeddings) for each in models] == [
        ("embed", 2048, True),
        ("long", 2048, False),
        ("no", 2048, False),
        ("short", 512, False),
    ]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"general.type": "adapter"}, "an adapter, not a model: name it under `lora`"),
        ({"general.type": "mmproj"}, "a projector"),
        ({"general.architecture": "clip"}, "a projector"),
        ({"general.type": "imatrix"}, "an importance matrix"),
        ({"general.architecture": "b", "b.context_length": "many"}, "b.context_length is no whole number"),
    ],
)
def test_what_is_no_model_says_so(tmp_path: Path, keys: dict[str, str], reason: str) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf(keys, [tensor("t", [32])], data=128))
    live = LiveCatalog(tmp_path)
    assert live.current.names() == []
    assert reason in live.problems["x.gguf"]


def test_a_second_name_of_the_same_weights_needs_an_alias(tmp_path: Path) -> None:
    write_weights(tmp_path, "b")
    (tmp_path / "a.gguf").symlink_to("b.gguf")
    live = LiveCatalog(tmp_path)
    assert live.current.names() == ["b"]
    assert "a.gguf is the same file as b.gguf" in live.problems["a.gguf"]
