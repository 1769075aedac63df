"""Bounds: end numbers and repetitions in JSON that a schema leaves without an end.

A small model may write digits, or the same text again and again, up to its token limit. Schemas cannot forbid that:
llguidance has no keyword for digits, and most lists have no `maxItems`. So masks are narrowed here, by what the answer has
repeated so far, and only where something else is allowed: whatever a schema demands can always be written.
"""

from __future__ import annotations

import math
import re
from typing import Final

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

Mask = NDArray[np.int32]

MAX_DIGITS: Final = 20  # of the integer part, and of the fraction: any double as Python writes it, any 64-bit integer
_NUMBER: Final = re.compile(rb"-?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?$")
_HELD: Final = re.compile(rb"-?[0-9]{1,%d}(?:\.[0-9]{0,%d})?(?:[eE][+-]?[0-9]{0,3})?" % (MAX_DIGITS, MAX_DIGITS))
_EXPONENT: Final = re.compile(rb"[0-9.][eE][+-]?[0-9]*$")
_IN_NUMBERS: Final = b"0123456789.eE+-"
_DIGITS: Final = b"0123456789"

# Tokens that may repeat a text word for word. Equal items of a list can be meant, such as labels or zeros; other repetitions,
# of words in a string, of the same key, or of objects in objects, are those of a model that has lost its way.
REPEATED_TOKENS: Final = 128
REPEATED_ITEM_TOKENS: Final = 512
_MIN_REPEATS: Final = 4
_MAX_PERIOD: Final = 128
_CHECK_EVERY: Final = 32
_NOT_IN_PLAIN_TEXT: Final = frozenset(b'",:[]{}\\')
_PROBES: Final = (b'"', b"z", b"\n")  # allowed: in strings and before them, in strings, in free text
_KEY_END: Final = b'": '
_BETWEEN_ITEMS: Final = re.compile(rb"[}\]](?:, )?[{\[]|[\n\xff]")  # of a list, or tool calls and their marks


class BoundTokens:
    """The tokens of a vocabulary that continue or end a piece of JSON. Shared by all answers of a model."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self.by_digits: dict[bytes, list[int]] = {}
        quoting, opening, closing = list[int](), list[int](), list(tokenizer.eos_tokens)
        self._probes: dict[bytes, int] = {}
        for token in range(tokenizer.vocab_size):
            piece = tokenizer.decode_bytes([token])
            begin = piece[:1]
            if begin.isdigit():
                digits = piece[: len(piece) - len(piece.lstrip(_DIGITS))]
                self.by_digits.setdefault(digits, []).append(token)
            elif begin == b'"':
                quoting.append(token)
            elif begin in (b"[", b"{"):
                opening.append(token)
            elif begin in (b"]", b"}"):
                closing.append(token)
            if piece in _PROBES:
                self._probes[piece] = token
        self.quoting, self.opening, self.closing = self._mask(quoting), self._mask(opening), self._mask(closing)
        self.most_digits = max(map(len, self.by_digits), default=0)

    @property
    def are_complete(self) -> bool:
        """Has the vocabulary the tokens by which an answer's position is found out?"""
        return len(self._probes) == len(_PROBES)

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token."""
        return self._tokenizer.decode_bytes([token])

    def allows(self, mask: Mask, character: bytes) -> bool:
        """Is the token of a quote, a `z` or a line break allowed?"""
        token = self._probes.get(character)
        return token is not None and is_allowed(mask, token)

    def _mask(self, tokens: list[int]) -> Mask:
        bits = np.zeros((self._tokenizer.vocab_size + 31) // 32 * 32, np.uint8)
        bits[tokens] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)


def is_allowed(mask: Mask, token: int) -> bool:
    """Is the bit of this token set?"""
    return bool(mask[token >> 5] >> (token & 31) & 1)


class Bounds:
    """What one answer has repeated so far. `thought_end`: the tokens that end free text, which is reasoning."""

    __slots__ = (
        "_has_closed",
        "_is_narrowed",
        "_loop",
        "_num_repeated",
        "_num_unchecked",
        "_number",
        "_period",
        "_thought_end",
        "_tokens",
    )

    def __init__(self, tokens: BoundTokens, thought_end: tuple[int, ...] = ()) -> None:
        self._tokens = tokens
        self._thought_end = thought_end
        self._number = b""
        self._loop = b""  # the text that is repeated
        self._period = 0  # in tokens
        self._num_repeated = 0
        self._is_narrowed = False  # since the repetition was found
        self._has_closed = False
        self._num_unchecked = 0

    def consume(self, new: list[int], answer: list[int]) -> None:
        """Follow the answer, which ends with the new tokens."""
        for token in new:
            piece = self._tokens.piece(token)
            before = piece.rstrip(_IN_NUMBERS)
            self._number = piece[len(before) :] if before else (self._number + piece)[-4 * MAX_DIGITS :]
        if self._loop:
            self._follow_repetition(new, answer)
        self._num_unchecked += len(new)
        if self._num_unchecked >= _CHECK_EVERY and not self._loop:
            repeated = _repeated(answer)
            self._loop, self._period = b"".join(map(self._tokens.piece, repeated)), len(repeated)
            self._num_repeated = max(REPEATED_TOKENS, _MIN_REPEATS * self._period)
            self._num_unchecked, self._is_narrowed, self._has_closed = 0, False, False

    def may_forbid(self, token: int | None = None) -> bool:
        """May `narrow` forbid this token, or any? Cheap, and false for nearly every token."""
        if self._loop:
            return True
        may_be_long = len(self._number) + self._tokens.most_digits > MAX_DIGITS
        if not self._number or not (may_be_long or _EXPONENT.search(self._number)):
            return False
        return token is None or self._tokens.piece(token)[:1].isdigit()

    def narrow(self, mask: Mask) -> None:
        """Clear the bits of tokens that continue an endless number or repetition, unless nothing else is allowed."""
        if self._tokens.allows(mask, b"z") and self._tokens.allows(mask, b"\n"):
            if self._loop and self._thought_end and is_allowed(mask, self._thought_end[0]):
                self._is_narrowed = True
                mask[:] = 0
                mask[self._thought_end[0] >> 5] = np.uint32(1 << (self._thought_end[0] & 31)).view(np.int32)
            return  # free text, such as reasoning
        shorter = self._without_digits(mask)
        if shorter is not None and shorter.any():
            mask[:] = shorter
        narrowed = self._without_repetition(mask) if self._loop else None
        if narrowed is not None and narrowed.any() and not np.array_equal(narrowed, mask):
            self._is_narrowed = True
            mask[:] = narrowed

    def _follow_repetition(self, new: list[int], answer: list[int]) -> None:
        """Forget a repetition that ends, and the string that was closed for it."""
        self._num_repeated += len(new)
        if not self._is_narrowed:
            if answer[-len(new) :] != answer[-len(new) - self._period : -self._period]:
                self._loop = b""
            return
        if self._thought_end[:1] == tuple(new):
            self._thought_end = self._thought_end[1:]
            self._loop = self._loop if self._thought_end else b""
            return
        self._has_closed = self._has_closed or any(is_allowed(self._tokens.closing, token) for token in new)
        if not _has_quotes(self._loop) and any(is_allowed(self._tokens.quoting, token) for token in new):
            self._loop = b""

    def _without_digits(self, mask: Mask) -> Mask | None:
        """Forbid digits that make the number too long. Where a quote is allowed, they belong to a string."""
        found = _NUMBER.search(self._number)
        if found is None or self._tokens.allows(mask, b'"'):
            return None
        too_long = [tokens for digits, tokens in self._tokens.by_digits.items() if not _is_held(found[0] + digits)]
        if not too_long:
            return None
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        for tokens in too_long:
            bits[tokens] = 0
        return np.packbits(bits, bitorder="little").view(np.int32)

    def _without_repetition(self, mask: Mask) -> Mask | None:
        """End the string that repeats itself, or all arrays and objects around the repetition that may end."""
        is_string = self._tokens.allows(mask, b"z")
        if not _has_quotes(self._loop) if is_string else _NOT_IN_PLAIN_TEXT.isdisjoint(self._loop):
            narrowed = mask & self._tokens.quoting
            if narrowed.any():
                return narrowed
        if is_string or (self._num_repeated < REPEATED_ITEM_TOKENS and _are_items(self._loop)):
            return None
        narrowed = mask & self._tokens.closing
        if narrowed.any():
            return narrowed
        if self._has_closed:
            self._loop = b""
            return None
        return mask & ~self._tokens.opening  # prefer a value that does not nest deeper


def _is_held(number: bytes) -> bool:
    return _HELD.fullmatch(number) is not None and math.isfinite(float(number))


def _has_quotes(loop: bytes) -> bool:
    """Does the repeated text open or close a string? It may begin within an escape."""
    return re.sub(rb"\\.", b"", 3 * loop, flags=re.DOTALL).count(b'"') > 1


def _are_items(loop: bytes) -> bool:
    """Is the repeated text one item of a list, or several? Else keys come again, or it nests deeper."""
    depth = sum(map(loop.count, (b"{", b"["))) - sum(map(loop.count, (b"}", b"]")))
    return depth == 0 and (_KEY_END not in 2 * loop or _BETWEEN_ITEMS.search(2 * loop) is not None)


def _repeated(tokens: list[int]) -> list[int]:
    """Return the tokens that the end of the answer has repeated for REPEATED_TOKENS; none if it does not repeat itself."""
    if len(tokens) < REPEATED_TOKENS:
        return []
    last = tokens[-1]
    for period in range(1, _MAX_PERIOD + 1):
        if tokens[-1 - period : -period] != [last]:
            continue
        length = max(REPEATED_TOKENS, _MIN_REPEATS * period)
        if len(tokens) >= length and tokens[period - length :] == tokens[-length:-period]:
            return tokens[-period:]
    return []
