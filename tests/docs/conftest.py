"""The server that the pages are run against."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from core.settings import ROOT
from tests.docs.kernel import PythonKernel
from tests.support.stack import StackProcess

STAND_INS: Final = ("qwen3-8b", "bge-small-en")  # real models that pages name; the fake model answers for them
_FAKE: Final = f"name: fake\nbackend: fake\nembeddings: true\nslots: 8\naliases: [{', '.join(STAND_INS)}]\n"


def start_server(folder: Path) -> StackProcess:
    """Start a server with the demo model and the fake one."""
    models = folder / "models"
    models.mkdir()
    for name in ("demo.gguf", "demo.yaml"):
        shutil.copy(ROOT / "models" / name, models)
    (models / "fake.yaml").write_text(_FAKE)
    server = StackProcess(folder, models)
    server.start()
    return server


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """The server of all pages that leave no keys behind. Its demo model has worked, so all its numbers are there."""
    server = start_server(tmp_path_factory.mktemp("manual"))
    with server.client() as client:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hello"}], max_tokens=1)
    yield server
    server.close()


@pytest.fixture(scope="session")
def python() -> Iterator[PythonKernel]:
    """The process that runs Python blocks."""
    kernel = PythonKernel()
    yield kernel
    kernel.close()
