"""The example backend of CONTRIBUTING.md, held to what it claims."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.models.capabilities import CAPABILITIES, Capabilities, Feature
from engine.config import BackendKind
from tests.conformance.backend_under_test import BackendUnderTest, EngineUnderTest
from tests.conformance.backends import TEMPLATE
from tests.conformance.behaviours import BEHAVIOURS, Behaviour
from tests.conformance.check import assert_behaves

MANUAL = Path(__file__).parents[2] / "CONTRIBUTING.md"
FEATURES = frozenset(
    {
        *(Feature.TEMPLATE_ARGUMENTS, Feature.CONTINUED_MESSAGE, Feature.ECHO, Feature.SEEDS),
        *(Feature.TOKEN_PROMPTS, Feature.TOKEN_COUNTS, Feature.PREFIX_CACHE, Feature.SLOTS),
    }
)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    (code,) = re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 60
    program = tmp_path_factory.mktemp("example") / "parrot.py"
    program.write_text(code)
    backend = BackendUnderTest(
        name="example",
        kind=BackendKind.FAKE,
        config={"chat_template": TEMPLATE},
        able=Capabilities(words="a parrot", features=FEATURES, keys=CAPABILITIES[BackendKind.FAKE].keys, instead={}),
        program=str(program),
        samples=False,
    )
    with backend.engine(tmp_path_factory.mktemp("e")) as engine:
        yield engine


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.check.__name__)
def test_the_example_of_the_manual_behaves_as_it_claims(example: EngineUnderTest, behaviour: Behaviour) -> None:
    assert_behaves(example, behaviour)
