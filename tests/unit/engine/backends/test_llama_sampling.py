"""Candidates are chosen as llama.cpp chooses from the whole vocabulary: the same seed gives the same tokens."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp as llama
import numpy as np
import pytest

from engine.backends.llama.nucleus import NucleusDraw, descending, exponentials, sum_in_order
from engine.backends.llama.sampling import ChainChooser
from engine.backends.llama.typical import TypicalDraw
from engine.errors import DecodeFailed
from engine.types import SamplingParams
from tests.support.engine import make_sequence
from tests.unit.engine.backends.rows import rows_of

PROMPT = [5, 3, 17, 3]
SIZES = (1000, 20_003)
NUM_DRAWS = 4
NO_ENTROPY = ("three allowed", "half forbidden", "large")  # llama.cpp's is not a number with a probability of 0


class WholeChain:
    """llama.cpp's samplers in one chain, which gets a whole row."""

    def __init__(self, sampling: SamplingParams, size: int) -> None:
        self.chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        repeat = llama.llama_sampler_init_penalties(size, 64, sampling.repeat_penalty, 0.0, 0.0)
        for token in PROMPT:
            llama.llama_sampler_accept(repeat, token)
        samplers = [
            repeat,
            llama.llama_sampler_init_penalties(size, 64, 1.0, sampling.frequency_penalty, sampling.presence_penalty),
            llama.llama_sampler_init_top_k(sampling.top_k),
            llama.llama_sampler_init_typical(sampling.typical_p, 1),
            llama.llama_sampler_init_top_p(sampling.top_p, 1),
            llama.llama_sampler_init_min_p(sampling.min_p, 1),
            llama.llama_sampler_init_temp(sampling.temperature),
            llama.llama_sampler_init_dist(sampling.seed) if sampling.temperature else llama.llama_sampler_init_greedy(),
        ]
        for sampler in samplers:
            llama.llama_sampler_chain_add(self.chain, sampler)

    def choose(self, row: np.ndarray) -> int:
        items = np.zeros(len(row), [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        items["id"], items["logit"] = np.arange(len(row)), row
        pointer: Any = ctypes.cast(items.ctypes.data, ctypes.POINTER(llama.llama_token_data))
        array = llama.llama_token_data_array(pointer, len(row), -1, False)
        llama.llama_sampler_apply(self.chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama.llama_sampler_accept(self.chain, token)
        return token


CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 1.9},
    {"temperature": 1e-6},
    {"temperature": 0, "repeat_penalty": 1.3, "frequency_penalty": 0.5},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 500, "temperature": 1.5},
    {"top_k": 30_000},
    {"top_p": 0.0001},
    {"top_p": 0.9},
    {"top_p": 0.9999, "temperature": 1.5},
    {"top_p": 0.99996, "temperature": 20.0},
    {"top_p": 0.8, "min_p": 0.3},
    {"typical_p": 0.2},
    {"typical_p": 0.9, "temperature": 0.7},
    {"typical_p": 0.8, "top_p": 0.9},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 64, "top_p": 0.95, "min_p": 0.01, "temperature": 0.8},
    {"top_p": 0.95, "min_p": 0.05},
    {"top_k": 30, "typical_p": 0.7},
    {"frequency_penalty": 0.7, "presence_penalty": -0.4},
    {"repeat_penalty": 1.2, "top_p": 0.9},
    {"frequency_penalty": -1.5, "top_k": 20},
]


@pytest.mark.parametrize("sampling", CASES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_the_choice_is_that_of_the_whole_vocabulary(size: int, sampling: dict[str, Any]) -> None:
    for name, row in rows_of(size).items():
        if "typical_p" in sampling and name in NO_ENTROPY[: 3 if "top_k" not in sampling else 1]:
            continue  # see below
        params = SamplingParams(seed=7, **sampling)
        chooser = ChainChooser(make_sequence("r", PROMPT, sampling=params), num_vocab=size, context_size=64)
        reference = WholeChain(params, size)
        given = row.copy()
        for _ in range(NUM_DRAWS):
            assert chooser.choose(given) == reference.choose(row), name
        assert given.tobytes() == row.tobytes(), "the row is left as it was"
        chooser.close()
        llama.llama_sampler_free(reference.chain)


def test_tokens_before_a_late_peak_are_not_left_out() -> None:
    """Their sum is negligible at first, but there are as many of them in the nucleus as of others."""
    row = (-12 - np.random.default_rng(1).random(20_003) / 2).astype(np.float32)
    row[-2] = 0
    params = SamplingParams(seed=3, top_p=0.97, temperature=20)
    chooser = ChainChooser(make_sequence("r", PROMPT, sampling=params), num_vocab=len(row), context_size=64)
    reference = WholeChain(params, len(row))
    assert [chooser.choose(row) for _ in range(9)] == [reference.choose(row) for _ in range(9)]


@pytest.mark.parametrize("draw", [NucleusDraw(0.9, 0, 1), NucleusDraw(0.99, 0.001, 0.8), TypicalDraw(0.9, 1)], ids=str)
def test_hardly_any_draw_is_left_to_the_whole_vocabulary(draw: NucleusDraw | TypicalDraw) -> None:
    row = rows_of(40_003)["usual"]
    drawn = [draw(row, number) for number in np.random.default_rng(1).random(200).tolist()]
    assert drawn.count(None) < 10
    assert len(set(drawn)) > 10


@pytest.mark.parametrize("name", rows_of(20_003))
def test_bounds_of_a_sum_are_those_of_adding_in_order(name: str) -> None:
    row = rows_of(20_003)[name]
    largest = row.max()
    for logits in (row, descending(row, 9000)):
        added = np.add.accumulate(np.exp(logits - largest))[-1]
        low, high = sum_in_order(exponentials(logits, largest))
        assert low <= added <= high < low * 1.0001


@pytest.mark.parametrize("top_k", [0, 8])
def test_typical_p_keeps_allowed_tokens_by_their_surprise(top_k: int) -> None:
    """The entropy of forbidden tokens, whose probability is 0, would not be a number."""
    row = rows_of(20_003)["three allowed"]
    params = SamplingParams(seed=1, typical_p=0.5, top_k=top_k)
    chooser = ChainChooser(make_sequence("r", PROMPT, sampling=params), num_vocab=len(row), context_size=64)
    assert {chooser.choose(row) for _ in range(30)} == {len(row) // 2}  # of 0.23, 0.63 and 0.14


@pytest.mark.parametrize("size", [1024, 20_003])
def test_typical_p_leaves_forbidden_tokens_out_where_llama_cpp_gets_all(size: int) -> None:
    row = (3 * np.random.default_rng(0).standard_normal(size)).astype(np.float32)
    row[:5] = -np.inf
    params = SamplingParams(seed=5, typical_p=0.3)
    chooser = ChainChooser(make_sequence("r", PROMPT, sampling=params), num_vocab=size, context_size=64)
    chooser._draw = None if chooser._draw is None else lambda _, __: None  # gives up on each row
    p = np.exp(row[5:].astype(np.float64) - row.max())
    p /= p.sum()
    surprise = np.abs(-np.log(p) + (p * np.log(p)).sum())
    order = np.argsort(surprise)
    kept = order[: np.searchsorted(np.add.accumulate(p[order]), 0.3) + 2]
    assert {chooser.choose(row) for _ in range(200)} <= set((kept + 5).tolist())


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
def test_a_temperature_that_rounds_to_nothing_is_greedy(sampling: dict[str, Any]) -> None:
    row = rows_of(20_003)["usual"]
    params = SamplingParams(seed=1, temperature=1e-42, **sampling)
    chooser = ChainChooser(make_sequence("r", PROMPT, sampling=params), num_vocab=len(row), context_size=64)
    assert {chooser.choose(row) for _ in range(5)} == {int(row.argmax())}


def test_the_largest_seed_is_a_seed_too() -> None:
    row = rows_of(20_003)["usual"]

    def drawn() -> list[int]:
        params = SamplingParams(seed=2**32 - 1, top_k=100, temperature=2.0)
        chooser = ChainChooser(make_sequence("r", PROMPT, sampling=params), num_vocab=len(row), context_size=64)
        return [chooser.choose(row) for _ in range(8)]

    assert drawn() == drawn()


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_a_row_that_is_not_a_number_fails(sampling: dict[str, Any]) -> None:
    row = rows_of(20_003)["usual"]
    row[19_000] = np.nan
    params = SamplingParams(seed=1, **sampling)
    chooser = ChainChooser(make_sequence("r", PROMPT, sampling=params), num_vocab=len(row), context_size=64)
    with pytest.raises(DecodeFailed, match="not a number"):
        chooser.choose(row)
