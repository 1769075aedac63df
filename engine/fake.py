"""A model that needs no weights: its answer is decided by the prompt alone, at a step time you choose.

Ships with the code so that everything above the engine can be tested and measured without llama.cpp.
Tokens are bytes; answers are short words.
"""

from __future__ import annotations

import time
import zlib
from array import array
from typing import Final

import numpy as np

from engine.embedding import Vectors, normalised
from engine.errors import PromptTooLong
from engine.scheduler import Plan
from engine.sequence import Sequence

_BOS: Final = 256
_END: Final = 257
_WORDS: Final = b"mill race water wheel stone grain flour river stream gear sack sieve cart barn loaf oven "


class FakeTokenizer:
    """One token per byte, and two control tokens."""

    num_vocab = 258
    bos_text = "<s>"
    eos_text = "</s>"
    special_texts = ("<s>", "</s>")
    chat_template = None

    def encode(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        """The bytes; control tokens only where asked for."""
        start = [_BOS] if add_bos else []
        if not special or not any(spelling in text for spelling in self.special_texts):
            return [*start, *text.encode()]
        tokens = start
        for part in text.replace("<s>", "\0\1").replace("</s>", "\0\2").split("\0"):
            if part[:1] in ("\1", "\2"):
                tokens.append(_BOS if part[0] == "\1" else _END)
                part = part[1:]
            tokens.extend(part.encode())
        return tokens

    def piece(self, token: int) -> bytes:
        """The byte itself."""
        return bytes((token,)) if token < 256 else b""

    def is_end(self, token: int) -> bool:
        """Only one token ends."""
        return token == _END


class FakeDecoder:
    """Each sequence follows a script drawn from a hash of its prompt, whatever shares the step."""

    build = "fake-1"

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds

    def open(self, sequence: Sequence) -> None:
        """Nothing to set up."""

    def run(self, plan: Plan) -> list[int]:
        """One token of its script for each sampled entry."""
        if self._step_seconds:
            time.sleep(self._step_seconds)
        return [_scripted(entry.sequence) for entry in plan.sampled]

    def release(self, sequence: Sequence) -> None:
        """Nothing to clear."""

    def reset(self) -> None:
        """Nothing to clear."""


def _scripted(sequence: Sequence) -> int:
    """The next token: letters from a place in the list, 40 to 119 of them, then the end unless that is ignored."""
    start = zlib.crc32(array("i", sequence.tokens[: sequence.num_prompt_tokens]))
    index = sequence.num_generated
    if index >= 40 + start % 80 and not sequence.ignore_eos:
        return _END
    return _WORDS[(start + index) % len(_WORDS)]


class FakeBackend:
    """The fake, loaded."""

    def __init__(self, step_seconds: float = 0.0) -> None:
        self.tokenizer = FakeTokenizer()
        self.decoder = FakeDecoder(step_seconds)


class FakeEmbedder:
    """See `engine.embedding.Embedder`: a random direction for each byte, added up, so texts of like letters are near."""

    dimensions = 64
    max_tokens = 2048

    def __init__(self) -> None:
        self._directions = np.random.default_rng(0).standard_normal((FakeTokenizer.num_vocab, self.dimensions))

    def embed(self, prompts: list[list[int]]) -> Vectors:
        """See `engine.embedding.Embedder`."""
        longest = max(map(len, prompts), default=0)
        if longest > self.max_tokens:
            raise PromptTooLong(f"An input has {longest} tokens, and the fake embeds {self.max_tokens}.", param="input")
        sums = [self._directions[prompt].sum(axis=0) for prompt in prompts]
        return normalised(np.array(sums, np.float32).reshape(len(prompts), self.dimensions))
