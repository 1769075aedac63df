"""Drafts are made where measured steps say that they pay, and their length follows."""

from __future__ import annotations

import itertools

import pytest

from engine.scheduler.draft_planner import DraftPlanner
from engine.scheduler.ngram_proposer import NgramProposer
from engine.scheduler.sequence import Sequence
from engine.scheduler.step_cost import StepCost
from tests.support.engine import make_sequence

CPU = {1: 11.5, 2: 23.0, 4: 34.0, 8: 44.0, 16: 55.0, 32: 100.0}  # milliseconds by rows: Gemma 3 270M on two cores
GPU = {1: 10.0, 2: 10.0, 4: 10.0, 8: 10.2, 16: 10.5, 32: 11.0}
LINEAR = {rows: 10.0 * rows for rows in (1, 2, 4, 8, 16, 32)}
COPIED = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]


def planner(
    milliseconds: dict[int, float], *, is_split: bool = True, is_always: bool = False, most_rows: int = 64
) -> DraftPlanner:
    cost = StepCost()
    cost.begin_with([(rows, each / 1000) for rows, each in milliseconds.items()], [])
    return DraftPlanner(
        cost, context_size=512, max_drafts=15, most_rows=most_rows, is_always=is_always, is_split=is_split
    )


def copying(name: str, copied: int = 12) -> Sequence:
    """A sequence that decodes, and whose output repeats its prompt so far."""
    sequence = make_sequence(name, [*COPIED, *COPIED, 50, 51], max_tokens=200)
    sequence.tokens += COPIED[:copied]
    sequence.num_computed = len(sequence.tokens) - 1
    return sequence


def wandering(name: str) -> Sequence:
    """A sequence whose last tokens occurred before, and were always followed by others."""
    sequence = make_sequence(name, [7, 8, 9, 1], max_tokens=200)
    for other in range(20, 32):
        sequence.tokens += [7, 8, 9, other]
    sequence.tokens += [7, 8, 9]
    sequence.num_computed = len(sequence.tokens) - 1
    return sequence


def test_a_copying_sequence_gets_long_drafts_where_many_rows_are_cheap() -> None:
    for costs in (CPU, GPU):
        drafts = planner(costs).plan([sequence := copying("a")])
        assert drafts[sequence] == [*COPIED[12:], 50, 51, *COPIED[:5]]


@pytest.mark.parametrize("batch_tokens", [32, 64, 96])
@pytest.mark.parametrize("is_always", [False, True])
def test_drafts_fit_into_a_step_beside_forced_tokens(batch_tokens: int, *, is_always: bool) -> None:
    number = 2 if is_always else 8
    max_forced = batch_tokens // number
    forced = [copying(f"f{index}") for index in range(number - 1)]
    for sequence in forced:
        sequence.num_computed -= max_forced - 1
    drafting = planner(GPU, is_split=False, is_always=is_always, most_rows=batch_tokens - number)
    drafts = drafting.plan([copying("a"), *forced], max_forced)
    assert sum(map(len, drafts.values())) + 1 + max_forced * len(forced) <= batch_tokens
    assert drafting.plan([copying("a")], max_forced), "alone it has room"


def test_no_drafts_are_made_where_rows_cost_what_steps_do() -> None:
    assert planner(LINEAR).plan([copying("a")]) == {}


def test_no_drafts_are_made_before_such_steps_were_measured() -> None:
    assert planner({1: 10.0}).plan([copying("a")]) == {}
    assert planner({}).plan([copying("a")]) == {}


def test_wrong_drafts_end_and_right_ones_begin_again_without_a_draft_being_computed() -> None:
    drafting, sequence = planner(GPU), wandering("a")
    assert drafting.plan([sequence]) == {}
    for number, token in enumerate([*range(60, 80), *range(60, 75)]):
        sequence.tokens.append(token)
        sequence.num_computed += 1
        has_drafts = bool(drafting.plan([sequence]))
        if number < 24:
            assert not has_drafts
    assert has_drafts


def test_short_drafts_are_made_where_the_rate_is_moderate() -> None:
    sequence = copying("a", 8)
    drafting = planner({**GPU, 8: 14.0, 16: 25.0, 32: 40.0})
    proposer = drafting._candidate(sequence)
    assert proposer is not None
    drafting._proposers[sequence].rate = 0.6
    assert 1 <= len(drafting.plan([sequence])[sequence]) <= 4


@pytest.mark.parametrize("is_split", [True, False])
def test_several_sequences_get_drafts_where_the_step_of_all_pays(*, is_split: bool) -> None:
    sequences = [copying(name) for name in "abcd"]
    drafts = planner(GPU, is_split=is_split).plan(sequences)
    lengths = [len(each) for each in drafts.values()]
    assert len(set(lengths)) == 1
    assert 12 <= sum(lengths) <= 24
    assert set(drafts) <= set(sequences)
    assert planner(GPU, is_split=is_split).plan([copying(str(number)) for number in range(9)]) == {}


def test_drafts_stay_within_the_context_and_the_limit_of_tokens() -> None:
    sequence = copying("a")
    sequence.max_tokens = sequence.num_generated + 3
    assert len(planner(GPU).plan([sequence])[sequence]) == 2
    sequence.max_tokens = sequence.num_generated + 1
    assert planner(GPU).plan([sequence]) == {}


def test_forced_tokens_and_constraints_get_no_drafts() -> None:
    forced = copying("a")
    forced.num_computed -= 2
    assert planner(GPU).plan([forced]) == {}


def test_always_needs_no_measurement_and_two_sequences_at_most() -> None:
    pair = [copying("a"), copying("b")]
    assert {len(each) for each in planner({}, is_always=True).plan(pair).values()} == {4}
    assert planner({}, is_always=True).plan([*pair, copying("c")]) == {}


def test_a_proposer_scores_each_token_that_the_one_before_foretold() -> None:
    tokens = [1, 2, 3, 4, 1, 2, 3]
    proposer = NgramProposer(tokens, len(tokens))
    proposer.update()
    first = proposer.rate
    tokens += [4]
    proposer.update()
    assert proposer.rate > first
    tokens += [9, 2, 3, 4, 5]
    proposer.update()
    assert proposer.propose(8) == [], "the last three tokens are new"
    for _ in itertools.repeat(None, 3):
        proposer.update()
    assert proposer.rate < 1
