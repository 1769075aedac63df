"""The shortest soak; `make soak` runs longer ones."""

from __future__ import annotations

import pytest

from tests.faults.soak import Measure, limit, soak


@pytest.mark.timeout(300)  # seconds of load, plus the time that the oracle gives the remaining work
def test_nothing_grows_under_load_and_restarts(tmp_path_factory: pytest.TempPathFactory) -> None:
    measures = soak(tmp_path_factory.mktemp("soak"), 12)
    assert len(measures) >= 19
    assert all(measure.before > 0 for measure in measures if measure.name.endswith(("MiB", "files", "connections")))


@pytest.mark.parametrize(
    ("name", "before", "after", "is_flat"),
    [
        ("api: memory, MiB", 100, 115, True),
        ("api: memory, MiB", 100, 130, False),
        ("api: open files", 30, 33, True),
        ("api: open files", 30, 40, False),
        ("postgres: connections", 20, 40, False),
        ("valkey: channels of jobs", 0, 1, False),
        ("engine: in slots", 0, 1, False),
    ],
)
def test_growth_is_detected(name: str, before: float, after: float, is_flat: bool) -> None:
    assert Measure(name, before, after, limit(name, before)).is_flat == is_flat
