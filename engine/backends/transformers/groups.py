"""Groups: the tokens of a step whose attention is computed together, with the lanes that they read and their masks.

    tokens of a step   a a a b c | d d d d d | e e e f f f        one row, sorted by their number in this step
    groups               single   |  of 5     |  of 3
    lanes                0 1 2    |  4        |  6 7               neighbours are a view, others are gathered

In a group, queries are padded to the largest number of new tokens, and lanes read up to the longest sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, NamedTuple, Protocol

import torch

# In a group, the longest sequence and the largest number of new tokens are at most this many times the smallest, and a few more.
_MOST_PADDING: Final = 2
_FEW: Final = 64


class Span(Protocol):
    """Tokens of a sequence from position `start` on; the last `num_rows` of them give logits. A step's entry is one."""

    @property
    def slot(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def num_rows(self) -> int: ...


class Tokens(NamedTuple):
    """A span without a sequence."""

    slot: int
    start: int
    tokens: list[int]
    num_rows: int


@dataclass(slots=True)
class Group:
    """Sequences with about as many new tokens, at rows `first` to `end` of the step.

    `num_new` is the largest number of new tokens, and `length` that of all tokens of a sequence. Unless `is_causal`, a token
    sees all new ones of its sequence, and there are no others.
    """

    slots: list[int]
    starts: list[int]
    counts: list[int]
    first: int
    device: torch.device | str
    is_causal: bool = True
    end: int = field(init=False)
    num_new: int = field(init=False)
    length: int = field(init=False)
    _masks: dict[tuple[int, int], torch.Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.end = self.first + sum(self.counts)
        self.num_new = max(self.counts)
        self.length = max(start + count for start, count in zip(self.starts, self.counts, strict=True))

    def lanes(self) -> slice | torch.Tensor:
        """Index of the lanes: a slice of neighbours, or their numbers."""
        first, number = self.slots[0], len(self.slots)
        if self.slots == list(range(first, first + number)):
            return slice(first, first + number)
        return torch.tensor(self.slots, device=self.device)

    def padded_rows(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rows of the step for padded queries, (entries, num_new), and the places of the real ones; None without padding."""
        most = self.num_new
        if sum(self.counts) == most * len(self.counts):
            return None
        rows, kept, at = list[list[int]](), list[int](), self.first
        for index, count in enumerate(self.counts):
            rows.append([at + min(number, count - 1) for number in range(most)])
            kept += range(index * most, index * most + count)
            at += count
        return torch.tensor(rows, device=self.device), torch.tensor(kept, device=self.device)

    def mask(self, window: int, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive mask, (entries, 1, 1 or repeats * num_new, length); None if every query sees every cell.

        A token sees those up to itself, of the last `window` ones if that is not 0. The queries of heads with the same keys are
        behind each other, so a mask of several new tokens is repeated.
        """
        key = window, repeats
        if key not in self._masks:
            self._masks[key] = self._new_mask(window, repeats, dtype)
        return self._masks[key]

    def _new_mask(self, window: int, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        most, length = self.num_new, self.length
        if not self.is_causal:
            return self._padding_mask(dtype)
        starts = torch.tensor(self.starts)[:, None, None]
        queries = starts + torch.arange(most)[:, None]
        cells = torch.arange(length)
        seen = cells <= queries  # (entries, num_new, length)
        if window:
            seen &= cells > queries - window
        if bool(seen.all()):
            return None
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
        if most > 1 and repeats > 1:
            mask = mask.repeat(1, repeats, 1)
        return mask[:, None].to(self.device)

    def _padding_mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """The mask of texts whose tokens see all others of their text."""
        seen = torch.arange(self.num_new) < torch.tensor(self.counts)[:, None, None, None]
        if bool(seen.all()):
            return None
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf")).to(self.device)


class StepLayout:
    """The tokens of a step in one row, sorted into groups.

    `order` are the indices of the entries of the plan in the order of their tokens in the row.
    """

    def __init__(self, entries: Sequence[Span], context_size: int, device: torch.device | str) -> None:
        self.order = sorted(range(len(entries)), key=lambda index: (len(entries[index].tokens), entries[index].slot))
        ordered = [entries[index] for index in self.order]
        tokens: list[int] = []
        positions: list[int] = []
        cells: list[int] = []
        for entry in ordered:
            tokens += entry.tokens
            start, end = entry.start, entry.start + len(entry.tokens)
            positions += range(start, end)
            base = entry.slot * context_size
            cells += range(base + start, base + end)
        self.tokens = torch.tensor([tokens], device=device)
        self.positions = torch.tensor([positions], device=device)
        self.cells = torch.tensor(cells, device=device)
        self.groups = list(_groups(ordered, device))

    def rows(self, entries: Sequence[Span]) -> dict[int, range]:
        """The rows that give logits, for each entry of the plan by its index."""
        rows, at = {}, 0
        for index in self.order:
            at += len(entries[index].tokens)
            rows[index] = range(at - entries[index].num_rows, at)
        return rows


def text_groups(lengths: Sequence[int], device: torch.device | str, *, is_causal: bool) -> list[Group]:
    """The groups of texts behind each other in one row, in order of length."""
    groups, first = list[Group](), 0
    for _, members in groupby(lengths, key=_size_class):
        counts = list(members)
        numbers = list(range(len(counts)))
        groups.append(Group(numbers, [0] * len(counts), counts, first, device, is_causal))
        first = groups[-1].end
    return groups


def _groups(ordered: list[Span], device: torch.device | str) -> Iterator[Group]:
    first = 0
    for _, entries in groupby(ordered, key=lambda entry: _size_class(len(entry.tokens))):
        for bucket in _buckets(list(entries)):
            group = Group(
                [entry.slot for entry in bucket],
                [entry.start for entry in bucket],
                [len(entry.tokens) for entry in bucket],
                first,
                device,
            )
            yield group
            first = group.end


def _size_class(count: int) -> int:
    """Entries of one class differ in their number of new tokens by less than two times; a single token is class 0."""
    return (count - 1).bit_length()


def _buckets(entries: list[Span]) -> Iterator[list[Span]]:
    """Split neighbours where their sequences differ so much in length that padding would waste more than another call costs."""
    bucket: list[Span] = []
    shortest = longest = 0
    for entry in entries:
        length = entry.start + len(entry.tokens)
        low, high = min(shortest or length, length), max(longest, length)
        if bucket and high > _MOST_PADDING * low + _FEW:
            yield bucket
            bucket, low, high = [], length, length
        bucket.append(entry)
        shortest, longest = low, high
    if bucket:
        yield bucket
