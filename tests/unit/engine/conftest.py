"""Fixture of the tiny models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.tiny_models import TinyModel, write_tiny_model


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[TinyModel, Path]:
    """The GGUF file of every tiny model."""
    folder = tmp_path_factory.mktemp("tiny-models")
    return {model: write_tiny_model(folder / f"{model}.gguf", model) for model in TinyModel}
