"""Prefix index: a radix tree of the tokens in all slots, which answers a prompt in one walk along its tokens.

Sets of slots are bit masks. An edge is a stretch of some slot's own list, so the tree copies no tokens:

    slot 0  a b c d e        ─ a b c ─┬─ d e       slot 0       a search for  a b c d x  gives
    slot 1  a b c x y                 └─ x ─── y   slot 1       slot 0: 4 tokens, slots 1 and 2: 3 tokens
    slot 2  a b c x                     (slot 2 ends here)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_BLOCK: Final = 64


@dataclass(frozen=True, slots=True)
class Match:
    """The slots of `mask` begin with the same `length` tokens as a prompt, and differ from it then, or end."""

    length: int
    mask: int


@dataclass(slots=True, eq=False)
class _Node:
    """The edge to a node is `tokens[start:end]`. `mask` are the slots that pass it, and `ends` those that end at its end."""

    tokens: list[int]
    start: int
    end: int
    mask: int
    parent: _Node | None
    ends: int = 0
    children: dict[int, _Node] = field(default_factory=dict)


class PrefixIndex:
    """A tree for each tenant. A list of tokens may grow after `put`, but its first ones stay."""

    def __init__(self) -> None:
        self._roots: dict[str, _Node] = {}
        self._places: dict[int, tuple[_Node, str]] = {}
        self._tokens: dict[int, list[int]] = {}

    @property
    def num_nodes(self) -> int:
        """Size of the trees: at most two nodes for each slot, and a root for each tenant."""
        nodes = list(self._roots.values())
        for node in nodes:
            nodes += node.children.values()
        return len(nodes)

    def put(self, slot: int, tenant: str, tokens: list[int]) -> None:
        """Set the tokens of a slot."""
        self.remove(slot)
        bit, end = 1 << slot, len(tokens)
        node = self._roots.get(tenant)
        if node is None:
            node = self._roots[tenant] = _Node([], 0, 0, 0, None)
        node.mask |= bit
        while node.end < end:
            at = node.end
            child = node.children.get(tokens[at])
            if child is None:
                child = node.children[tokens[at]] = _Node(tokens, at, end, 0, node)
            else:
                at = common_prefix(child.tokens, tokens, min(child.end, end), at)
                if at < child.end:
                    child = _split(child, at)
            child.mask |= bit
            node = child
        node.ends |= bit
        self._places[slot], self._tokens[slot] = (node, tenant), tokens

    def remove(self, slot: int) -> None:
        """Drop the tokens of a slot."""
        if slot not in self._places:
            return
        node, tenant = self._places.pop(slot)
        del self._tokens[slot]
        bit = 1 << slot
        node.ends &= ~bit
        while (parent := node.parent) is not None:
            node.mask &= ~bit
            if not node.mask:
                del parent.children[node.tokens[node.start]]
            elif not node.ends and len(node.children) == 1:
                _join(node, parent)
            node = parent
        node.mask &= ~bit
        if not node.mask:
            del self._roots[tenant]

    def search(self, tenant: str, tokens: list[int], most: int) -> list[Match]:
        """Find all slots that share at least one token with the first `most` of a prompt: the longest match first."""
        root = self._roots.get(tenant)
        if root is None:
            return []
        found = list(self._walk(root, tokens, most))
        found.sort(reverse=True)
        return [Match(length, mask) for length, mask in found]

    def _walk(self, node: _Node, tokens: list[int], most: int) -> Iterator[tuple[int, int]]:
        """Give the slots that leave the path of a prompt, at each node of the path."""
        at = 0
        while True:
            child = node.children.get(tokens[at]) if at < most else None
            leaving = node.mask if child is None else node.mask & ~child.mask
            if leaving & node.ends and at < most:
                yield from self._grown(leaving & node.ends, tokens, most, at)
                leaving &= ~node.ends
            if leaving and at:
                yield at, leaving
            if child is None:
                return
            at = common_prefix(child.tokens, tokens, min(child.end, most), at)
            if at < child.end:
                yield at, child.mask
                return
            node = child

    def _grown(self, mask: int, tokens: list[int], most: int, start: int) -> Iterator[tuple[int, int]]:
        """Compare the tokens that slots got after they were put here, such as those of an answer."""
        for slot in members(mask):
            grown = self._tokens[slot]
            length = common_prefix(grown, tokens, min(len(grown), most), start)
            if length:
                yield length, 1 << slot


def members(mask: int) -> Iterator[int]:
    """The indices of the bits of a mask, from low to high."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def common_prefix(one: list[int], other: list[int], most: int, start: int = 0) -> int:
    """Length of the common prefix, at most `most`, of lists that share `start` tokens; compares slices at the speed of C."""
    at = start
    while at < most:
        end = min(at + _BLOCK, most)
        if one[at:end] != other[at:end]:
            break
        at = end
    else:
        return at
    while end - at > 1:
        middle = (at + end) // 2
        if one[at:middle] == other[at:middle]:
            at = middle
        else:
            end = middle
    return at


def _split(node: _Node, at: int) -> _Node:
    """Cut an edge at a position; return the node there."""
    assert node.parent is not None, "a root has no edge"
    upper = _Node(node.tokens, node.start, at, node.mask, node.parent, 0, {node.tokens[at]: node})
    node.parent.children[node.tokens[node.start]] = upper
    node.start, node.parent = at, upper
    return upper


def _join(node: _Node, parent: _Node) -> None:
    """Remove a node where nothing ends or branches: its only child gets its edge."""
    (child,) = node.children.values()
    child.start, child.parent = node.start, parent
    parent.children[node.tokens[node.start]] = child
