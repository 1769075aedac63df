"""Every backend is held to every behaviour, on a real engine process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from core.errors import ApiError
from core.models.capabilities import FEATURES
from core.models.model_files import ModelConfig
from core.schemas.endpoints import check_feature
from tests.conformance.backend_under_test import BackendUnderTest, EngineUnderTest
from tests.conformance.backends import BACKENDS
from tests.conformance.behaviours import BEHAVIOURS, Behaviour
from tests.conformance.table import RESULTS, claimed, render

MANUAL = Path(__file__).parents[2] / "docs" / "backends.md"


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> BackendUnderTest:
    return request.param


@pytest.fixture(scope="module")
def shared(backend: BackendUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    with backend.engine(tmp_path_factory.mktemp("e")) as engine:
        yield engine


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.check.__name__)
def test_a_backend_behaves_as_it_claims(
    backend: BackendUnderTest, shared: EngineUnderTest, behaviour: Behaviour, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cell = backend.name, behaviour.title
    RESULTS[cell] = "FAILED"
    if behaviour.feature is not None and behaviour.feature not in backend.able:
        assert_refused(backend, behaviour)
    else:
        with ExitStack() as stack:
            engine = shared
            if behaviour.ends_engine:
                engine = stack.enter_context(backend.engine(tmp_path_factory.mktemp("e")))
            behaviour.check(engine)
    RESULTS[cell] = claimed(backend, behaviour)


def test_the_table_of_the_manual_is_what_backends_claim() -> None:
    assert render(BACKENDS) in MANUAL.read_text()


def assert_refused(backend: BackendUnderTest, behaviour: Behaviour) -> None:
    """A request for a feature that is not claimed gets a 400 before it is queued; no request asks for an engine's way."""
    assert behaviour.feature is not None
    if behaviour.feature not in FEATURES:
        return
    with pytest.raises(ApiError, match=f"runs on {backend.able.words}, which ") as caught:
        check_feature(ModelConfig(name="m", backend=backend.kind), behaviour.feature, "field")
    assert caught.value.problem.status == 400
