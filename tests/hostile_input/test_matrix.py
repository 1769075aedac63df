"""The table is complete: each row has a test, and each test that it names exists."""

from __future__ import annotations

import pytest

from tests.hostile_input.matrix import ELSEWHERE, ROOT, ROWS, proved_here


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_test(row: str) -> None:
    assert proved_here().get(row) or ELSEWHERE.get(row)


@pytest.mark.parametrize("name", [name for names in ELSEWHERE.values() for name in names])
def test_every_named_test_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert f"def {test or 'test_'}" in (ROOT / path).read_text()
