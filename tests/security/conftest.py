"""A stack with API keys, the demo model and a fake model, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.settings import ROOT
from tests.support.guarded import Guarded
from tests.support.stack import StackProcess

DEMO = f"name: demo\nparameters: {{model: {ROOT / 'models' / 'demo.gguf'}, temperature: 0}}\nslots: 4\nthreads: 1\n"
FAKE = "name: fake\nbackend: fake\nslots: 8\ncontext_size: 4096\n"


@pytest.fixture(scope="package")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("secured")
    models = folder / "models"
    models.mkdir()
    (models / "demo.yaml").write_text(DEMO)
    (models / "fake.yaml").write_text(FAKE)
    process = StackProcess(folder, models, MILLRACE_KEY_CACHE_SECONDS="0")
    process.start()
    running = Guarded(process)
    yield running
    running.close()
