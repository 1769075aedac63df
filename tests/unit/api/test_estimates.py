"""Estimates of a batch file: the arithmetic on measurements of recent batches."""

from __future__ import annotations

from typing import Any

from api.batches.estimates import RecentWork, estimate
from core.schemas.batch_validation import ModelLines


def work(**given: Any) -> RecentWork:
    values = {
        "batches": 2,
        "lines": 10,
        "prompt_tokens": 600,
        "cached_tokens": 0,
        "completion_tokens": 400,
        "seconds": 10.0,
    } | given
    return RecentWork(**values)


LINES = [ModelLines(model="m", lines=5, prompt_tokens=300, max_output_tokens=1000)]


def test_an_estimate_counts_answers_as_long_as_recent_ones_and_the_lines_before() -> None:
    found = estimate(LINES, {"m": work(queued_lines=3)}, now=1000)
    assert (found.output_tokens, found.total_tokens, found.tokens_per_second) == (200, 500, 100)
    assert (found.seconds, found.finish_at) == (5 + 3, 1008)


def test_the_rate_counts_computed_tokens_as_that_of_a_running_batch_does() -> None:
    found = estimate(LINES, {"m": work(cached_tokens=300)}, now=1000)
    assert (found.seconds, found.tokens_per_second) == (5, 70)


def test_answers_are_no_longer_than_their_limit() -> None:
    short = [LINES[0].model_copy(update={"max_output_tokens": 50})]
    assert estimate(short, {"m": work()}, now=0).output_tokens == 50


def test_an_estimate_without_measurements_is_empty() -> None:
    none = work(batches=0, lines=0, prompt_tokens=0, completion_tokens=0, seconds=0.0)
    found = estimate(LINES, {"m": none}, now=0)
    assert (found.measured_batches, found.seconds, found.finish_at, found.tokens_per_second) == (0, None, None, None)
    assert estimate([], {}, now=0).seconds is None
