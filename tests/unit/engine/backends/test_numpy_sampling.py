"""Choices by numpy follow the parameters: filters by their definition, draws by the probabilities of what is left."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
import pytest

from engine.backends.transformers.sampling import NumpyChooser
from engine.types import SamplingParams
from tests.support.engine import make_sequence
from tests.unit.engine.backends.rows import rows_of

NUM: Final = 3000
ROW: Final = (np.random.default_rng(3).standard_normal(NUM) * 3).astype(np.float32)


def chooser(tokens: list[int] | None = None, **sampling: Any) -> NumpyChooser:
    return NumpyChooser(make_sequence("r", tokens or [1], sampling=SamplingParams(**sampling)))


def chosen(number: int = 400, **sampling: Any) -> Counter[int]:
    drawn = chooser(seed=1, **sampling)
    return Counter(drawn.choose(ROW) for _ in range(number))


def probabilities(row: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    weights = np.exp((row - row.max()).astype(np.float64) / temperature)
    return weights / weights.sum()


def nucleus(top_p: float) -> set[int]:
    order = np.argsort(-ROW)
    number = int((np.cumsum(probabilities(ROW)[order]) < top_p).sum()) + 1
    return set(order[:number].tolist())


@pytest.mark.parametrize("top_k", [1, 2, 17])
def test_top_k_keeps_the_likeliest(top_k: int) -> None:
    assert set(chosen(top_k=top_k)) <= set(np.argsort(-ROW)[:top_k].tolist())
    assert len(chosen(top_k=top_k)) > 1 or top_k == 1


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.9999])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float) -> None:
    kept = nucleus(top_p)
    assert set(chosen(top_p=top_p)) <= kept
    assert len(chosen(2000, top_p=top_p)) > len(kept) // 50


def test_min_p_keeps_what_is_likely_beside_the_best() -> None:
    scores = probabilities(ROW)
    kept = set(np.flatnonzero(scores >= 0.2 * scores.max()).tolist())
    assert set(chosen(2000, min_p=0.2)) == kept


def test_typical_p_keeps_the_least_surprising() -> None:
    scores = probabilities(ROW)
    distance = np.abs(-np.log(scores) + (scores * np.log(scores)).sum())
    order = np.argsort(distance)
    number = int((np.cumsum(scores[order]) < 0.4).sum()) + 1
    assert set(chosen(typical_p=0.4)) <= set(order[:number].tolist())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_probabilities(temperature: float) -> None:
    drawn = chosen(20_000, top_k=4, temperature=temperature)
    best = np.argsort(-ROW)[:4]
    expected = probabilities(ROW[best], temperature)
    found = np.array([drawn[int(token)] for token in best]) / 20_000
    assert np.abs(found - expected).max() < 0.02


def test_a_seed_repeats_the_draws_and_none_is_random() -> None:
    assert chosen(50) == chosen(50)
    unseeded = [tuple(each.choose(ROW) for _ in range(8)) for each in (chooser(), chooser())]
    assert unseeded[0] != unseeded[1]


def test_a_forbidden_token_is_never_drawn() -> None:
    row = np.full(NUM, -np.inf, np.float32)
    row[[5, 7]] = 1.0
    drawn = chooser(seed=2, top_p=0.99, min_p=0.001)
    assert {drawn.choose(row) for _ in range(50)} == {5, 7}


def test_penalties_of_the_output_leave_the_prompt_alone() -> None:
    row = np.zeros(4, np.float32)
    row[:] = [3.0, 2.5, 2.1, 0.0]
    drawn = chooser([0, 0, 0], temperature=0, frequency_penalty=0.4, presence_penalty=0.2)
    assert [drawn.choose(row) for _ in range(4)] == [0, 1, 0, 2]


def test_the_repeat_penalty_counts_the_prompt_and_only_the_last_tokens() -> None:
    row = np.array([3.0, 2.0, -1.0, -1.5], np.float32)
    assert chooser([0], temperature=0, repeat_penalty=2.0).choose(row) == 1
    assert chooser([0] + [2] * 64, temperature=0, repeat_penalty=2.0).choose(row) == 0
    assert chooser([0, 1, 2], temperature=0, repeat_penalty=100.0).choose(row) == 0


def plainly_drawn(row: np.ndarray, sampling: SamplingParams, number: float) -> int:
    """The definition, in double precision: the token at which the probabilities reach the number, likeliest first after top_p."""
    scores = probabilities(row)
    order = np.argsort(-row, kind="stable") if sampling.top_p < 1 else np.arange(len(row))
    if sampling.top_p < 1:
        order = order[: int(np.searchsorted(np.cumsum(scores[order]), sampling.top_p)) + 1]
    totals = np.cumsum(probabilities(row[order], sampling.temperature))
    return int(order[np.searchsorted(totals, number * totals[-1], side="right")])


@pytest.mark.parametrize("name", ["usual", "peaked", "best at the end", "half forbidden", "nearly flat", "ascending"])
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.6}, {"top_p": 0.3}, {"top_p": 0.9, "temperature": 1.4}], ids=str
)
def test_a_large_vocabulary_is_drawn_from_by_the_definition(name: str, sampling: dict[str, Any]) -> None:
    row = rows_of(40_003)[name]
    drawn, numbers = chooser(seed=4, **sampling), np.random.default_rng(4)
    for _ in range(8):
        assert drawn.choose(row) == plainly_drawn(row, SamplingParams(**sampling), numbers.random())
