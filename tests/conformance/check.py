"""The check of one behaviour: the backend has it, or the service refuses requests for it."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import ApiError
from core.models.capabilities import CAPABILITIES, FEATURES, Feature
from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig
from core.schemas.endpoints import check_feature
from tests.conformance.backend_under_test import BackendUnderTest, EngineUnderTest
from tests.conformance.behaviours import Behaviour


def assert_behaves(engine: EngineUnderTest, behaviour: Behaviour) -> None:
    """Run a behaviour on the engine, which runs again afterwards; or expect the refusal of what is not claimed."""
    backend = engine.backend
    if behaviour.feature is not None and behaviour.feature not in backend.able:
        assert_refused(backend, behaviour.feature)
        return
    behaviour.check(engine)
    engine.ensure_running()


def assert_refused(backend: BackendUnderTest, feature: Feature) -> None:
    """A request for a feature that is not claimed gets a 400 before it is queued; no request asks for an engine's way."""
    if feature not in FEATURES:
        return
    address: dict[str, Any] = {"base_url": ("http://127.0.0.1:1/v1",)} if backend.kind is BackendKind.OPENAI else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CAPABILITIES, backend.kind, backend.able)
        with pytest.raises(ApiError, match=f"runs on {backend.able.words}, which ") as caught:
            check_feature(ModelConfig(name="m", backend=backend.kind, **address), feature, "field")
    assert caught.value.problem.status == 400
