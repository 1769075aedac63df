"""A stand-in hub, and the command in this process, with a models folder and an inventory of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.commands import models_add
from cli.errors import CommandFailed
from core.errors import MillraceError
from core.settings import ROOT
from tests.support.devices import GIB, fake_devices
from tests.support.hub import StandInHub

DEMO = (ROOT / "models" / "demo.gguf").read_bytes()


@dataclass
class Command:
    """`millrace models add` with the waits between tries left out."""

    models: Path
    capsys: pytest.CaptureFixture[str]

    def add(self, what: str | Path, **options: Any) -> dict[str, Any]:
        """Run it, expecting success; returns what it prints with --json."""
        self.capsys.readouterr()
        models_add.add(str(what), models_dir=self.models, as_json=True, **options)
        answer: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return answer

    def text(self, what: str | Path, **options: Any) -> str:
        """Run it, expecting success; returns all that it prints."""
        self.capsys.readouterr()
        models_add.add(str(what), models_dir=self.models, **options)
        printed = self.capsys.readouterr()
        return printed.out + printed.err

    def failure(self, what: str | Path, **options: Any) -> str:
        """Run it, expecting one sentence, without a model that a server would see; returns the sentence."""
        before = visible(self.models)
        with pytest.raises((MillraceError, CommandFailed, typer.Exit)) as caught:
            models_add.add(str(what), models_dir=self.models, **options)
        assert visible(self.models) == before
        return str(caught.value)


def visible(folder: Path) -> set[str]:
    """Everything in the models folder that a server looks at."""
    return {path.name for path in folder.glob("*") if not path.name.startswith(".")} if folder.is_dir() else set()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    memory = {"total_bytes": 16 * GIB, "free_bytes": 16 * GIB}
    for name, value in fake_devices(tmp_path, memory=memory).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setenv("MILLRACE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MILLRACE_PORT", "1")  # no server answers there
    return Command(tmp_path / "models", capsys)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A hub with `acme/tiny-GGUF`, two quantisations of the demo model; the client is pointed to it as by its variables."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    with StandInHub(tmp_path / "hub") as running:
        add_file(running, "acme/tiny-GGUF/tiny-Q8_0.gguf", DEMO)
        add_file(running, "acme/tiny-GGUF/tiny-Q4_K_M.gguf", DEMO)
        add_file(running, "acme/tiny-GGUF/README.md", b"# tiny\n")
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


def add_file(hub: StandInHub, name: str, content: bytes) -> Path:
    """Put a file into a repository: `org/repo/FILE`."""
    path = hub.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
