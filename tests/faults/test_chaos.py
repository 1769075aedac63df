"""A minute of chaos; `make chaos` runs longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.chaos import chaos


@pytest.mark.timeout(300)  # a minute of faults, plus the time that the oracle gives the remaining work
@pytest.mark.parametrize("seed", [7])
def test_nothing_is_lost_in_a_minute_of_chaos(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder: Path = tmp_path_factory.mktemp("chaos")
    chaos(folder, seed, 60)
