"""Passes over a row of logits give what the straightforward computation in double precision gives."""

from __future__ import annotations

import numpy as np
import pytest

from engine.backends.logits import best_token, best_tokens, draw, log_total, top_tokens
from engine.errors import DecodeFailed
from tests.unit.engine.backends.rows import rows_of

SIZES = (1000, 16_384, 40_003)
ROWS = [pytest.param(row, id=f"{size}, {name}") for size in SIZES for name, row in rows_of(size).items()]


def probabilities(row: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    weights = np.exp((row.astype(np.float64) - float(row.max())) / temperature)
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("number", [1, 2, 20, 600, 50_000])
def test_top_tokens_are_all_that_reach_the_bound(row: np.ndarray, number: int) -> None:
    ordered = np.sort(row)[::-1]
    bound = ordered[min(number, len(row)) - 1]
    assert top_tokens(row, number).tolist() == np.flatnonzero((row >= bound) & (row > -np.inf)).tolist()


@pytest.mark.parametrize("row", ROWS)
def test_the_total_is_that_of_double_precision(row: np.ndarray) -> None:
    largest = float(row.max())
    expected = largest + np.log(np.exp(row.astype(np.float64) - largest).sum())
    assert log_total(row, best_token(row)) == pytest.approx(expected, abs=1e-5, rel=1e-9)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("temperature", [1e-30, 0.3, 1.0, 2.0])
def test_a_draw_is_the_first_token_that_reaches_the_number(row: np.ndarray, temperature: float) -> None:
    totals = np.cumsum(probabilities(row, temperature))
    numbers = [0.0, *np.random.default_rng(1).random(20), 1 - 2**-53]
    for number in numbers:
        token = draw(row, best_token(row), temperature, number)
        if token is not None:
            assert token == int(np.searchsorted(totals, number * totals[-1]))


def test_a_draw_gives_up_at_a_boundary_and_hardly_anywhere_else() -> None:
    row = rows_of(40_003)["usual"]
    best = best_token(row)
    totals = np.cumsum(probabilities(row))
    boundary = float(totals[best])
    assert draw(row, best, 1.0, boundary + 1e-9) is None
    assert draw(row, best, 1.0, boundary - 1e-9) is None
    assert draw(row, best, 1.0, float(totals[best - 1] + totals[best]) / 2) == best
    drawn = [draw(row, best, 1.0, number) for number in np.random.default_rng(1).random(200)]
    assert drawn.count(None) < 20


def test_the_first_of_the_largest_logits_is_best() -> None:
    rows = np.array([[0, 3, 3], [-np.inf, -np.inf, -5]], np.float32)
    assert best_tokens(rows) == [best_token(row) for row in rows] == [1, 2]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_logit_that_is_no_number_fails_the_step(broken: float) -> None:
    rows = np.zeros((2, 5), np.float32)
    rows[1, 3] = broken
    with pytest.raises(DecodeFailed, match="not a number"):
        best_token(rows[1])
    with pytest.raises(DecodeFailed, match="not a number"):
        best_tokens(rows)
    with pytest.raises(DecodeFailed, match="not a number"):
        best_token(np.full(5, -np.inf, np.float32))
