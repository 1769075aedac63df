"""A full disk under the models folder: `models add` reports it, leaves no model, and the same command continues."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.settings import ROOT
from tests.faults.test_full import disk
from tests.support.command import millrace
from tests.support.hub import StandInHub

DEMO = (ROOT / "models" / "demo.gguf").read_bytes()


@pytest.mark.mount
def test_a_download_onto_a_full_disk_leaves_no_model_and_continues_later(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "acme" / "tiny"
    repository.mkdir(parents=True)
    (repository / "tiny-Q8_0.gguf").write_bytes(DEMO)
    with disk(tmp_path / "models", megabytes=4) as full, StandInHub(tmp_path / "hub") as hub:
        address = f"{hub.endpoint}/acme/tiny/resolve/main/tiny-Q8_0.gguf"

        def add() -> str:
            return millrace("models", "add", address, "--models-dir", full.path, cwd=tmp_path).stderr

        full.fill()
        assert "is full. Free some space; the same command continues." in add()
        full.clear()
        (full.path / "other").write_bytes(bytes(3_500_000))
        assert "There is no space for tiny-Q8_0.gguf: 1 MiB are missing" in add()
        assert not list(full.path.glob("*.yaml"))
        (full.path / "other").unlink()
        assert "Traceback" not in add()
        assert (full.path / "tiny" / "tiny-Q8_0.gguf").read_bytes() == DEMO
        assert (full.path / "tiny.yaml").is_file()


@pytest.mark.mount
def test_a_copy_onto_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with disk(tmp_path / "models", megabytes=1) as full:
        done = millrace(
            "models", "add", ROOT / "models" / "demo.gguf", "--copy", "--models-dir", full.path, cwd=tmp_path
        )
        assert (done.returncode, "is full. Free some space" in done.stderr) == (1, True)
        assert not list(full.path.rglob("*.gguf"))
        assert not list(full.path.glob("*.yaml"))
