"""A backend without weights: its output depends only on the prompt, and its time per step is configurable.

It ships with the code so that everything above the engine can be tested and measured without llama.cpp.
Tokens are bytes. The output is short words, after a reasoning text where the prompt opens one. The fake has a real memory:
it derives the output from the content of the slot, so a wrong fork changes the output.
"""

from __future__ import annotations

import time
import zlib
from array import array
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec
import numpy as np
from llguidance import LLTokenizer

from engine.backends.base import InputPiece
from engine.backends.fake.faults import trigger_fault
from engine.backends.fake.memory import FakeMemory
from engine.backends.fake.tokenizer import BOS, END, FakeTokenizer, fake_grammar_tokenizer
from engine.backends.vectors import Vectors, normalised
from engine.errors import EngineError, OutOfKvMemory
from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits
from engine.scheduler.step import SampleResult, Shift, StepEntry, StepPlan
from engine.structured.grammar import GrammarState
from engine.types import TokenLogprob

_THINK_TAG: Final = b"<think>"
_REASONING: Final = b"The wheel turns while the water runs.</think>\n\n"
_WORDS: Final = b"mill race water wheel stone grain flour river stream gear sack sieve cart barn loaf oven "


class _Script(NamedTuple):
    """The output of a sequence: the reasoning text, or nothing, then the list of words from `start` on."""

    reasoning: bytes
    start: int


class FakeDecoder:
    """Each sequence follows a script that depends on a hash of its prompt, not on the other sequences of a step.

    `capacity` is the number of tokens that all slots hold together, as in unified memory; None is no limit.
    """

    build = "fake-3"

    def __init__(
        self,
        step_seconds: float = 0.0,
        *,
        slots: int = 8,
        spare_slots: int = 2,
        traits: MemoryTraits | None = None,
        capacity: int | None = None,
        max_drafts: int = 0,
    ) -> None:
        self.slots = slots
        self.spare_slots = spare_slots
        self.traits = traits or MemoryTraits()
        self.max_drafts = max_drafts
        self.num_computed = 0
        self._step_seconds = step_seconds
        self._capacity = capacity
        self._memory = FakeMemory(slots + spare_slots, self.traits)
        self._scripts: dict[Sequence, _Script] = {}

    def first_position(self, slot: int) -> int:
        return self._memory.first_position(slot)

    def open(self, sequence: Sequence) -> None:
        """Do nothing: a script is made when it is first needed."""

    def close(self, sequence: Sequence) -> None:
        """Drop the script."""
        self._scripts.pop(sequence, None)

    def update_memory(self, forks: list[Fork], shifts: list[Shift]) -> None:
        for fork in forks:
            self._memory.fork(fork)
        for shift in shifts:
            self._memory.shift(shift)

    def change_layout(self) -> None:
        self.traits = replace(self.traits, is_split=not self.traits.is_split)
        self.reset()

    def run(self, plan: StepPlan) -> list[SampleResult]:
        """Give one token of its script to each sampled entry, and those of its drafts that match the script."""
        if self._capacity is not None and self._memory.num_held + plan.num_tokens > self._capacity:
            raise OutOfKvMemory
        if self._step_seconds:
            time.sleep(self._step_seconds)
        for entry in plan.entries:
            self._memory.append(entry)
        self.num_computed += plan.num_tokens
        return [self._sample(entry) for entry in plan.sampled]

    def reset(self) -> None:
        self._memory = FakeMemory(self.slots + self.spare_slots, self.traits)

    def warm_up(self) -> None:
        """Do nothing: the speed of the fake is not that of a model."""

    def _sample(self, entry: StepEntry) -> SampleResult:
        if not entry.wants_prompt_logprobs:
            return self._sample_next(entry)
        end = entry.start + len(entry.tokens)
        first = 0 if entry.start == 0 else entry.start + 1
        scored = _logprobs(entry.sequence, entry.sequence.tokens[first : end + 1])
        if end < len(entry.sequence.tokens):
            return SampleResult([], prompt_logprobs=scored)
        return msgspec.structs.replace(self._sample_next(entry), prompt_logprobs=scored)

    def _sample_next(self, entry: StepEntry) -> SampleResult:
        if entry.sequence.constraint is not None:
            return self._constrained(entry.sequence, entry.sequence.constraint)
        drafts = entry.tokens[len(entry.tokens) - entry.num_drafts :]
        tokens = [self._next_token(entry.sequence, 0)]
        while len(tokens) <= len(drafts) and tokens[-1] == drafts[len(tokens) - 1]:
            tokens.append(self._next_token(entry.sequence, len(tokens)))
        self._memory.cut(entry.slot, len(drafts) - (len(tokens) - 1))
        return SampleResult(tokens, len(tokens) - 1, _logprobs(entry.sequence, tokens))

    def _constrained(self, sequence: Sequence, state: GrammarState) -> SampleResult:
        """The token of the script if the grammar allows it, else the end token, else the first allowed byte."""
        try:
            if state.is_finished:
                return SampleResult([state.end_token])
            candidates = (self._next_token(sequence, 0), END, *range(FakeTokenizer.num_vocab))
            token = next(token for token in candidates if state.allows(token))
            forced = state.accept(token)
            return SampleResult([token, *forced], 0, _logprobs(sequence, [token]), is_complete=state.is_finished)
        except EngineError as error:
            return SampleResult([], failure=error)

    def _next_token(self, sequence: Sequence, ahead: int) -> int:
        """The likeliest token: that of the script has the logit 0, all others -10, before their bias."""
        token = self._script_token(sequence, ahead)
        if not (bias := sequence.sampling.logit_bias):
            return token
        logits = {other: value - 10 for other, value in bias.items()} | {token: bias.get(token, 0)}
        return max(logits, key=lambda each: (logits[each], each == token))

    def _script_token(self, sequence: Sequence, ahead: int) -> int:
        """The token `ahead` of the next one: reasoning, then 40 to 119 letters of the words, then the end unless `ignore_eos`."""
        script = self._scripts.get(sequence) or self._make_script(sequence)
        index = sequence.num_generated + ahead - len(script.reasoning)
        if index < 0:
            return script.reasoning[index]
        if index >= 40 + script.start % 80 and not sequence.ignore_eos:
            return END
        return _WORDS[(script.start + index) % len(_WORDS)]

    def _make_script(self, sequence: Sequence) -> _Script:
        """Derive the script from the prompt as the slot holds it."""
        assert sequence.slot is not None, "a sampled sequence has a slot"
        prompt = self._memory[sequence.slot][: sequence.num_prompt_tokens]
        text = _text(prompt)
        trigger_fault(text)
        reasoning = _REASONING if text[-2 * len(_THINK_TAG) :].rstrip().endswith(_THINK_TAG) else b""
        script = _Script(reasoning, zlib.crc32(array("i", prompt)) + sequence.index)
        self._scripts[sequence] = script
        return script


def _text(tokens: list[int]) -> bytes:
    """Bytes of tokens without the control tokens, of which most prompts have one at their beginning."""
    try:
        return bytes(tokens[1:] if tokens[:1] == [BOS] else tokens)
    except ValueError:
        return bytes(token for token in tokens if token < BOS)


def _logprobs(sequence: Sequence, tokens: list[int]) -> list[TokenLogprob]:
    """Logprobs of a model that is always certain."""
    if sequence.logprobs is None:
        return []
    certain = [TokenLogprob(piece=bytes((token,)) if token < BOS else b"", logprob=0.0) for token in tokens]
    return [msgspec.structs.replace(one, top=[one][: sequence.logprobs]) for one in certain]


class FakeEmbedder:
    """Adds up a random direction for each byte, so that texts with similar letters have similar vectors.

    It has a real memory, so a piece in the wrong slot is found. `num_computed` counts the tokens of each step.
    """

    dimensions = 64

    def __init__(
        self, max_tokens: int = 2048, *, step_tokens: int = 512, slots: int = 64, can_split: bool = True
    ) -> None:
        self.max_tokens = max_tokens
        self.step_tokens = min(step_tokens, max_tokens)
        self.slots = slots
        self.can_split = can_split
        self.num_computed: list[int] = []
        self._memory: dict[int, list[int]] = {}
        self._directions = np.random.default_rng(0).standard_normal((FakeTokenizer.num_vocab, self.dimensions))

    def warm_up(self) -> None:
        """Do nothing."""

    def embed(self, pieces: list[InputPiece]) -> Vectors:
        self.num_computed.append(sum(len(piece.tokens) for piece in pieces))
        assert self.num_computed[-1] <= self.step_tokens or (len(pieces) == 1 and not self.can_split), "a large step"
        for piece in pieces:
            memory = self._memory.setdefault(piece.slot, [])
            assert len(memory) == piece.start, "a piece does not start at the end of its slot"
            memory.extend(piece.tokens)
            trigger_fault(bytes(token for token in memory if token < BOS))
        held = sum(map(len, self._memory.values()))
        assert held <= self.max_tokens + self.step_tokens, "more tokens than there is memory"
        ended = [self._memory.pop(piece.slot) for piece in pieces if piece.is_last]
        sums = [self._directions[prompt].sum(axis=0) for prompt in ended]
        return normalised(np.array(sums, np.float32).reshape(len(ended), self.dimensions))

    def clear(self, slot: int) -> None:
        del self._memory[slot]

    def reset(self) -> None:
        self._memory.clear()


class FakeBackend:
    """The fake, loaded."""

    lab = None

    def __init__(self, decoder: FakeDecoder | None = None, *, embedder: FakeEmbedder | None = None) -> None:
        self.tokenizer = FakeTokenizer()
        self.decoder = decoder or FakeDecoder()
        self.embedder = embedder

    def grammar_tokenizer(self) -> LLTokenizer:
        return fake_grammar_tokenizer(self.tokenizer)
