"""Step order: sorts the entries of a step so that split memory takes few passes over the weights.

llama.cpp computes streams side by side as long as each has a token left, and only while the slot of the next one follows (its
`split_equal`): the shortest entry ends a pass for all, and separates the entries to its left from those to its right.

    in order of slots       ■■■■■■■■        by length, the last run first  ■■■■■■■■
    slot 0  decode          1                                              2
    slot 1  decode          1                                              2
    slot 2  prompt          1222222…                                       1111111…
    slot 3  prompt          1222222…                                       1111111…

Both orders take two passes, but the right one computes a prompt in one piece, which the attention of llama.cpp does in tiles
from 64 tokens on. With decodes on both sides of a prompt, only the order of slots computes these in one pass.
"""

from __future__ import annotations

from itertools import pairwise
from operator import attrgetter

from engine.scheduler.step import StepEntry

_slot = attrgetter("slot")


def order_entries(entries: list[StepEntry]) -> list[StepEntry]:
    """Return the entries in the order that takes fewer passes."""
    in_order = sorted(entries, key=_slot)
    if len({len(entry.tokens) for entry in entries}) < 2:
        return in_order
    runs = _runs(in_order)
    if _num_passes([(entry.slot, len(entry.tokens)) for entry in in_order], most=len(runs)) < len(runs):
        return in_order
    return [entry for run in reversed(runs) for entry in run]


def _runs(entries: list[StepEntry]) -> list[list[StepEntry]]:
    """Runs of entries in neighbouring slots with equally many tokens."""
    runs = [[entries[0]]]
    for last, entry in pairwise(entries):
        if entry.slot == last.slot + 1 and len(entry.tokens) == len(last.tokens):
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _num_passes(left: list[tuple[int, int]], *, most: int) -> int:
    """Number of passes in order of slots, counted up to `most`; `left` are slots and their numbers of tokens."""
    passes = 0
    while left and passes < most:
        passes += 1
        chain = [left[0]]
        for slot, length in left[1:]:
            if slot == chain[-1][0] + 1:
                chain.append((slot, length))
        done = min(length for _, length in chain)
        computed = {slot for slot, _ in chain}
        left = [(slot, length - done * (slot in computed)) for slot, length in left]
        left = [(slot, length) for slot, length in left if length]
    return passes
