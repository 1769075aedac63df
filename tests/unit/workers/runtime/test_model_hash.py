"""The hash of a model changes with every file that decides its answers, and with no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.settings import Settings
from tests.unit.core.models.test_hf_folder import write_folder
from workers.runtime.host_paths import model_hash


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "state").mkdir()
    return Settings(state_dir=tmp_path / "state")


CHANGES: tuple[tuple[Callable[[Path], object], bool], ...] = (
    (lambda folder: (folder / "model.safetensors").write_bytes(b"other"), True),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), True),
    (lambda folder: (folder / "model.safetensors").rename(folder / "model-1.safetensors"), True),
    (lambda folder: (folder / "README.md").write_text("new"), False),
)


@pytest.mark.parametrize(("change", "is_other"), CHANGES)
def test_the_hash_of_a_folder_is_that_of_its_files(
    change: Callable[[Path], object], is_other: bool, settings: Settings, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model")
    first = model_hash(settings, str(folder))
    assert first == model_hash(settings, str(folder))
    change(folder)
    assert (model_hash(settings, str(folder)) != first) is is_other


def test_there_is_no_hash_without_a_file(settings: Settings, tmp_path: Path) -> None:
    assert model_hash(settings, str(tmp_path / "none.gguf")) is None
    assert model_hash(settings, "hf:org/not-downloaded") is None
