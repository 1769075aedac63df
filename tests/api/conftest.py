"""One running stack for all tests of the api: the real processes, the fake model."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from openai import OpenAI

from tests.conftest import FAKE_MODEL
from tests.stack import StackProcess


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    folder = tmp_path_factory.mktemp("server")
    models = folder / "models"
    models.mkdir()
    (models / "fake.yaml").write_text(FAKE_MODEL)
    (models / "slow.yaml").write_text("name: slow\nbackend: fake\nslots: 2\nstep_seconds: 0.02\n")
    limits = {"MILLRACE_BODY_BYTES": "100000", "MILLRACE_BATCH_FILE_BYTES": "200000", "MILLRACE_FILE_BYTES": "300000"}
    process = StackProcess(folder, models, **limits)
    process.start()
    yield process
    process.close()


@pytest.fixture
def client(server: StackProcess) -> Iterator[OpenAI]:
    """The official client."""
    with server.client() as client:
        yield client


@pytest.fixture
def http(server: StackProcess) -> Iterator[httpx2.Client]:
    """For what the official client would never send."""
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        yield client
