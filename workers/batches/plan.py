"""Batch plan: the order in which a batch's lines run, and where the shards are cut.

Lines whose conversations start alike stand together, so that an engine computes a shared start once while it is in a slot.
Think of a tree: a *group* is two or more lines that share so much text, groups lie within groups, and a line belongs to the
smallest group around it. Texts are represented by their hashes, lines by their number in the file.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

# Characters of a text after which its start is hashed: close together where most instructions end, and about a
# quarter apart beyond, so that documents differ although all of them follow the same instruction.
_CUTS: Final = (64, 128, 192, 256, 320, 400, 512, 640, 800, 1024, 1280, 1600, 2048, 2560, 3200, 4096, 5120, 6400, 8192, 10240,
                12800, 16384)  # fmt: skip
_MAX_STARTS: Final = 64
_NO_CUT: Final = sys.maxsize


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLine:
    """A line as the plan sees it; its number is its index in the list.

    `starts` are hashes of growing starts of its conversation: equal hashes up to an index mean equal text up to there.
    `duplicate_of` is the first line with the same body if one answer serves both, else the line itself.
    """

    model: str
    starts: array[int]
    expected_tokens: int
    duplicate_of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """A shard: line numbers in the order in which they run."""

    model: str
    lines: Sequence[int]


def plan_shards(lines: Sequence[PlanLine], shard_lines: int) -> list[PlannedShard]:
    """Plan every line once: by model, then by group, in the order of their first lines; about `shard_lines` bodies a shard."""
    groups = _groups(lines)
    order = _order(lines, groups)
    shards = []
    for model_lines in _by_model(lines, order):
        shares = [
            _NO_CUT if _is_duplicate(lines, *pair) else _num_shared(groups, *pair) for pair in pairwise(model_lines)
        ]
        begin = 0
        for end in _ends([0, *shares], shard_lines):
            shards.append(PlannedShard(model=lines[model_lines[0]].model, lines=model_lines[begin:end]))
            begin = end
    return shards


def hash_starts(model: str, texts: Iterable[str]) -> array[int]:
    """Hash the starts of a conversation: after each text, and within a text after each number of characters in `_CUTS`.

    The hashes differ between processes. A collision only makes neighbours of two lines that share nothing.
    """
    starts = array("q")
    value = hash(model)
    for text in texts:
        begin = 0
        for cut in _CUTS:
            if cut >= len(text):
                break
            value = hash((value, text[begin:cut]))
            starts.append(value)
            begin = cut
        value = hash((value, text[begin:] if begin else text))
        starts.append(value)
        if len(starts) >= _MAX_STARTS:
            break
    return starts


def _groups(lines: Sequence[PlanLine]) -> list[list[int]]:
    """Each line's groups, the widest first, by their first lines. A line that shares no more text leaves the search."""
    groups: list[list[int]] = [[] for _ in lines]
    searching: Sequence[int] = range(len(lines))
    depth = 0
    while searching:
        first_with: dict[int, int] = {}
        found = [
            (line, first_with.setdefault(starts[depth], line))
            for line in searching
            if depth < len(starts := lines[line].starts)
        ]
        shared = {first for line, first in found if first != line}
        searching = [line for line, first in found if first in shared]
        for line, first in found:
            if first in shared:
                groups[line].append(first)
        depth += 1
    return groups


def _order(lines: Sequence[PlanLine], groups: list[list[int]]) -> list[int]:
    """Line numbers in the plan's order.

    Groups come in the order of their first lines. The lines of a group that are in no smaller group run as one block, the
    longest first. Lines in no group keep their position in the file, between the groups.
    """
    first_of_model: dict[str, int] = {}
    first_of_block: dict[tuple[int, int], int] = {}
    keys: list[tuple[int, ...]] = []
    for number, (line, path) in enumerate(zip(lines, groups, strict=True)):
        model = first_of_model.setdefault(line.model, number)
        if not path:
            keys.append((model, number))
            continue
        block = first_of_block.setdefault((path[-1], len(path)), number)
        keys.append((model, *path, block, -line.expected_tokens, line.duplicate_of, number))
    return sorted(range(len(lines)), key=keys.__getitem__)


def _by_model(lines: Sequence[PlanLine], order: list[int]) -> Iterator[list[int]]:
    """Cut the order where the model changes."""
    begin = 0
    for place in range(1, len(order) + 1):
        if place == len(order) or lines[order[place]].model != lines[order[begin]].model:
            yield order[begin:place]
            begin = place


def _is_duplicate(lines: Sequence[PlanLine], before: int, line: int) -> bool:
    return lines[before].duplicate_of == lines[line].duplicate_of


def _num_shared(groups: list[list[int]], before: int, line: int) -> int:
    """Number of groups that hold both lines."""
    count = 0
    for one, other in zip(groups[before], groups[line], strict=False):
        if one != other:
            break
        count += 1
    return count


def _ends(shared: list[int], size: int) -> Iterator[int]:
    """Yield the ends of a model's shards. `shared[i]` counts the groups of line i and the one before; duplicates are one line.

    Of the places up to half as much again as `size`, an end is the one with the fewest shared groups, and of those the
    nearest to `size`: so no group that fits is ever cut.
    """
    bodies = [place for place, share in enumerate(shared) if share != _NO_CUT]
    places, shares = [*bodies, len(shared)], [*(shared[place] for place in bodies), 0]
    begin, last = 0, len(bodies)
    while begin < last:
        near, most = begin + size, begin + max(size * 3 // 2, 1)
        begin = min(range(begin + 1, min(most, last) + 1), key=lambda end: (shares[end], abs(end - near)))
        yield places[begin]
