"""The order of a step's entries in split memory."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler.sequence import Sequence
from engine.scheduler.step import StepEntry
from engine.scheduler.step_order import order_entries


def _entries(lengths: dict[int, int]) -> list[StepEntry]:
    sequence = cast(Sequence, None)
    return [StepEntry(sequence, slot, 0, [0] * length, 1) for slot, length in lengths.items()]


def _passes(entries: list[StepEntry]) -> list[dict[int, int]]:
    """The passes that `split_equal` of llama.cpp makes of a batch: tokens by slot."""
    left = {entry.slot: len(entry.tokens) for entry in entries}
    passes = []
    while any(left.values()):
        chain: list[int] = []
        for slot in left:
            if left[slot] and (not chain or slot == chain[-1] + 1):
                chain.append(slot)
        done = min(left[slot] for slot in chain)
        passes.append(dict.fromkeys(chain, done))
        for slot in chain:
            left[slot] -= done
    return passes


def test_prompts_beside_decodes_are_computed_in_one_piece() -> None:
    entries = order_entries(_entries({0: 1, 1: 1, 2: 64, 3: 64}))
    assert _passes(entries) == [{2: 64, 3: 64}, {0: 1, 1: 1}]
    entries = order_entries(_entries({0: 64, 1: 64, 2: 1, 3: 1}))
    assert _passes(entries) == [{2: 1, 3: 1}, {0: 64, 1: 64}]


def test_a_prompt_between_decodes_does_not_separate_them() -> None:
    entries = order_entries(_entries({3: 1, 0: 1, 1: 100, 2: 1}))
    assert _passes(entries) == [{0: 1, 1: 1, 2: 1, 3: 1}, {1: 99}]


def test_prompts_of_many_lengths_take_a_pass_each() -> None:
    entries = order_entries(_entries({0: 70, 1: 100, 2: 90}))
    assert _passes(entries) == [{2: 90}, {1: 100}, {0: 70}]


@given(st.dictionaries(st.integers(0, 12), st.integers(1, 9), min_size=1))
def test_never_more_passes_than_in_order_of_slots(lengths: dict[int, int]) -> None:
    entries = _entries(lengths)
    chosen = order_entries(entries)
    assert sorted(entry.slot for entry in chosen) == sorted(lengths)
    in_order = sorted(entries, key=lambda entry: entry.slot)
    assert len(_passes(chosen)) <= len(_passes(in_order))
