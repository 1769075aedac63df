"""A byte-level BPE vocabulary, trained on the demo data, in the form llama.cpp calls `gpt2`.

It trains words and merges only; llama.cpp encodes, so that training uses exactly the tokens of the product.
Source of the scheme and of the byte alphabet: Sennrich et al. 2016 and the GPT-2 tokenizer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# GPT-2's split for ASCII text; the data is ASCII only.
_WORDS: Final = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, and merges by rank."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]

    def id_of(self, token: str) -> int:
        """Return the id of a token by its exact spelling."""
        return self.tokens.index(token)


def byte_alphabet() -> dict[int, str]:
    """Map each byte to GPT-2's printable character for it: itself if printable, otherwise one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def train(texts: Iterable[str], num_tokens: int) -> Vocabulary:
    """Merge the most frequent pair until there are `num_tokens`, special tokens included."""
    alphabet = byte_alphabet()
    counts = Counter(word for text in texts for word in _WORDS.findall(text))
    words = [(tuple(alphabet[byte] for byte in word.encode()), count) for word, count in counts.items()]
    tokens = list(alphabet.values())
    merges: list[tuple[str, str]] = []
    while len(tokens) < num_tokens - len(SPECIAL_TOKENS):
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in words:
            for pair in pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        tokens.append("".join(best))
        words = [(_merge(symbols, best), count) for symbols, count in words]
    return Vocabulary((*tokens, *SPECIAL_TOKENS), tuple(merges))


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    if pair[0] not in symbols:
        return symbols
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)
