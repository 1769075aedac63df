"""Model files of tests: a YAML file of the fake backend, and weights that llama.cpp could load."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from core.settings import ROOT

_DEMO: Final = ROOT / "models" / "demo.gguf"


def write_model(folder: Path, name: str, /, **keys: object) -> Path:
    """Write `NAME.yaml`, of the fake backend unless the keys differ."""
    path = folder / f"{name}.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in ({"name": name, "backend": "fake"} | keys).items()))
    return path


def write_weights(folder: Path, name: str) -> Path:
    """Write `NAME.gguf`: the demo model."""
    path = folder / f"{name}.gguf"
    path.write_bytes(_DEMO.read_bytes())
    return path
