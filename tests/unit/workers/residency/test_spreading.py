"""How many engines a model's batches get, and how often launchers look for them."""

from __future__ import annotations

import pytest

from workers.residency.demand import poll_seconds
from workers.residency.spreading import most_engines


@pytest.mark.parametrize(
    ("shards", "replicas", "most"), [(0, None, 1), (3, None, 1), (4, None, 2), (400, None, 200), (400, 3, 3), (0, 3, 1)]
)
def test_each_engine_has_shards_for_all_its_lanes(shards: int, replicas: int | None, most: int) -> None:
    assert most_engines(shards, 2, replicas) == most


@pytest.mark.parametrize(
    ("look", "launchers", "pause"),
    [(0.003, 1, 1.0), (0.003, 100, 1.0), (0.02, 200, 8.0), (0.1, 1000, 15.0), (0.0, 1, 1.0)],
)
def test_looks_of_many_launchers_take_half_a_core_of_the_database_at_most(
    look: float, launchers: int, pause: float
) -> None:
    assert poll_seconds(look, launchers) == pytest.approx(pause)
