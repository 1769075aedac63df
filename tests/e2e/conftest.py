"""Stacks for end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import StackProcess


@pytest.fixture
def slow_models(tmp_path: Path) -> Path:
    """A fake model that takes about a second for a response, so that a test can interrupt it."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "fake.yaml").write_text("name: fake\nbackend: fake\nslots: 8\nstep_seconds: 0.005\n")
    return folder


@pytest.fixture
def stack(tmp_path: Path, slow_models: Path) -> Iterator[StackProcess]:
    """A running stack with a slow fake model."""
    process = StackProcess(tmp_path, slow_models)
    process.start()
    try:
        yield process
    finally:
        process.close()
