"""Every backend is held to every behaviour, on a real engine process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.backend_under_test import BackendUnderTest, EngineUnderTest
from tests.conformance.backends import BACKENDS
from tests.conformance.behaviours import BEHAVIOURS, Behaviour
from tests.conformance.check import assert_behaves
from tests.conformance.table import RESULTS, claimed, render

MANUAL = Path(__file__).parents[2] / "docs" / "backends.md"


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> BackendUnderTest:
    under_test: BackendUnderTest = request.param
    for package in under_test.needs:
        pytest.importorskip(package, reason=f"needs the extra {under_test.name}")
    return under_test


@pytest.fixture(scope="module")
def engine(backend: BackendUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    with backend.engine(tmp_path_factory.mktemp("e")) as engine:
        yield engine


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.check.__name__)
def test_a_backend_behaves_as_it_claims(
    backend: BackendUnderTest, engine: EngineUnderTest, behaviour: Behaviour
) -> None:
    RESULTS[backend.name, behaviour.title] = "FAILED"
    assert_behaves(engine, behaviour)
    RESULTS[backend.name, behaviour.title] = claimed(backend, behaviour)


def test_the_table_of_the_manual_is_what_backends_claim() -> None:
    assert render(BACKENDS) in MANUAL.read_text()
