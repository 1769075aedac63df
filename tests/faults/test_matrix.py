"""The table is complete: each row has a test, and each test that it names exists."""

from __future__ import annotations

import pytest

from core.settings import ROOT
from tests.faults.matrix import ROWS


def test_every_row_has_a_test() -> None:
    assert list(ROWS) == [f"F{number}" for number in range(1, 53)]


@pytest.mark.parametrize("name", sorted({name for names in ROWS.values() for name in names}))
def test_every_named_test_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert f"def {test}(" in (ROOT / path).read_text()
