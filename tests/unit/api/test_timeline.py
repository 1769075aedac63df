"""Lengths of the buckets of a timeline."""

from __future__ import annotations

import pytest

from api.batches.timeline import bucket_seconds


@pytest.mark.parametrize(
    ("span", "points", "seconds"),
    [(0.0, 60, 0.1), (6.1, 60, 0.2), (60.0, 60, 1), (86400.0, 60, 1800), (30 * 86400.0, 10, 3 * 86400)],
)
def test_a_bucket_has_the_shortest_usual_length_that_covers_the_span(span: float, points: int, seconds: float) -> None:
    assert bucket_seconds(span, points) == seconds
    assert seconds * points >= span
