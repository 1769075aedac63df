"""Every test that the table of rules names exists."""

from __future__ import annotations

import pytest

from core.settings import ROOT
from tests.security.rules import RULES


@pytest.mark.parametrize("name", sorted({name for names in RULES.values() for name in names}))
def test_every_named_test_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert f"def {test}" in (ROOT / path).read_text()
