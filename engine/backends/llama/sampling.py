"""From a step's logits to tokens: greedy rows all at once, the others by llama.cpp's sampler chains on a few threads.

Knows logits, sampler chains and constraints. Everything heavy here happens in C without Python's lock, so threads help.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import llama_cpp as llama
import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.backends.llama.tokenizer import LlamaTokenizer
from engine.errors import DecodeFailed, EngineError
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import SampleResult, StepEntry
from engine.structured.bitmask import best_allowed, forbid, scratch_mask
from engine.structured.grammar import GrammarState
from engine.types import SamplingParams, TokenLogprob

_PENALTY_WINDOW: Final = 64
_THREADED_LOGITS: Final = 1 << 16

Logits = NDArray[np.float32]


@dataclass(slots=True)
class _SamplerState:
    """What one sequence samples with. `chain` is None where the largest logit is all that matters."""

    chain: Any  # Any: a pointer
    bias_ids: NDArray[np.int64]
    bias: NDArray[np.float32]

    @property
    def is_plain(self) -> bool:
        return self.chain is None and not self.bias_ids.size


class Sampler:
    """The voices of all opened sequences. `rows` of a step lie in `logits` in the order of its entries."""

    def __init__(
        self, context: Any, tokenizer: LlamaTokenizer, context_size: int, threads: int
    ) -> None:  # Any: pointer
        self._context = context
        self._tokenizer = tokenizer
        self._context_size = context_size
        self._end_tokens = np.array(tokenizer.end_tokens, np.int64)
        self._voices: dict[Sequence, _SamplerState] = {}
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "sampler") if threads > 1 else None

    def open(self, sequence: Sequence) -> None:
        """Make its chain, unless it has one: what it remembers must outlive a lost slot."""
        if sequence not in self._voices:
            self._voices[sequence] = self._voice(sequence)

    def close(self, sequence: Sequence) -> None:
        """Free its chain."""
        voice = self._voices.pop(sequence, None)
        if voice is not None and voice.chain is not None:
            llama.llama_sampler_free(voice.chain)

    def sample(self, entries: list[StepEntry], logits: Logits, first_rows: list[int]) -> list[SampleResult]:
        """One result per entry. `first_rows` are llama.cpp's batch indices of each entry's first sampled token."""
        self._forbid_ends(entries, logits)
        plain = [self._is_plain(entry) for entry in entries]
        if all(plain):
            return [SampleResult([token]) for token in _best(logits)]
        results: list[SampleResult | None] = [None] * len(entries)
        jobs, rows, at = [], [], 0
        for index, entry in enumerate(entries):
            if plain[index]:
                rows.append((index, at))
            else:
                jobs.append((index, entry, at, first_rows[index]))
            at += entry.num_rows
        if rows:
            best = _best(logits[[row for _, row in rows]])
            for (index, _), token in zip(rows, best, strict=True):
                results[index] = SampleResult([token])
        for index, sampled in self._run(jobs, logits):
            results[index] = sampled
        return [result for result in results if result is not None]

    def _forbid_ends(self, entries: list[StepEntry], logits: Logits) -> None:
        rows: list[int] = []
        at = 0
        for entry in entries:
            if entry.sequence.ignore_eos and entry.sequence.constraint is None:
                rows += range(at, at + entry.num_rows)
            at += entry.num_rows
        if rows:
            logits[np.array(rows)[:, None], self._end_tokens] = -np.inf

    def _run(self, jobs: list[tuple[int, StepEntry, int, int]], logits: Logits) -> Iterable[tuple[int, SampleResult]]:
        def work(part: list[tuple[int, StepEntry, int, int]]) -> list[tuple[int, SampleResult]]:
            return [(index, self._sample(entry, logits, at, row)) for index, entry, at, row in part]

        if self._pool is None or len(jobs) < 2 or len(jobs) * logits.shape[1] < _THREADED_LOGITS:
            return work(jobs)
        parts = [jobs[number :: self._threads] for number in range(min(self._threads, len(jobs)))]
        others = [self._pool.submit(work, part) for part in parts[1:]]
        done = work(parts[0])
        return done + [one for other in others for one in other.result()]

    def _sample(self, entry: StepEntry, logits: Logits, at: int, row: int) -> SampleResult:
        if entry.wants_prompt_logprobs:
            return self._score(entry, logits, at, row)
        return self._sample_next(entry, logits, at, row)

    def _score(self, entry: StepEntry, logits: Logits, at: int, row: int) -> SampleResult:
        """How likely each token of a prompt was after those before it; then the next one, if all of it is read."""
        sequence, top = entry.sequence, entry.sequence.logprobs or 0
        scored = [] if entry.start else [TokenLogprob(piece=self._piece(entry.tokens[0]), logprob=0.0)]
        end = entry.start + len(entry.tokens)
        for number, token in enumerate(sequence.tokens[entry.start + 1 : end + 1]):
            scored.append(self._logprob(logits[at + number], token, top))
        if end < len(sequence.tokens):
            return SampleResult([], prompt_logprobs=scored)
        last = msgspec.structs.replace(entry, num_rows=1, wants_prompt_logprobs=False)
        sampled = self._sample_next(last, logits, at + entry.num_rows - 1, row + entry.num_rows - 1)
        return msgspec.structs.replace(sampled, prompt_logprobs=scored)

    def _sample_next(self, entry: StepEntry, logits: Logits, at: int, row: int) -> SampleResult:
        if entry.sequence.constraint is None:
            return self._sample_free(entry, logits, at, row)
        try:
            return self._sample_constrained(entry.sequence, entry.sequence.constraint, logits[at], row)
        except EngineError as error:
            return SampleResult([], failure=error)

    def _sample_free(self, entry: StepEntry, logits: Logits, at: int, row: int) -> SampleResult:
        """An entry's rows one after the other, as far as its drafts were right."""
        sequence, voice = entry.sequence, self._voices[entry.sequence]
        drafts = entry.tokens[len(entry.tokens) - entry.num_drafts :]
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        for number in range(entry.num_rows):
            line = logits[at + number]
            unbiased = self._biased(voice, line, sequence)
            token = self._pick(voice, line, row + number)
            tokens.append(token)
            if sequence.logprobs is not None:
                logprobs.append(self._logprob(unbiased, token, sequence.logprobs))
            if number == len(drafts) or token != drafts[number]:
                break
        return SampleResult(tokens, len(tokens) - 1, logprobs)

    def _sample_constrained(self, sequence: Sequence, state: GrammarState, line: Logits, row: int) -> SampleResult:
        """The likeliest token is asked about first: a mask is made only where the model disagrees with its constraint."""
        if state.is_finished:
            return SampleResult([state.end_token])
        voice = self._voices[sequence]
        unbiased = self._biased(voice, line, sequence)
        token = int(line.argmax()) if voice.chain is None else -1
        if token < 0 or not state.allows(token):
            mask = scratch_mask(len(line))
            state.fill_mask(mask)
            if voice.chain is None:
                token = best_allowed(line, mask)
            else:
                forbid(line, mask)
                token = self._pick(voice, line, row)
        logprobs = [] if sequence.logprobs is None else [self._logprob(unbiased, token, sequence.logprobs)]
        forced = state.accept(token)
        return SampleResult([token, *forced], 0, logprobs, is_complete=state.is_finished)

    def _biased(self, voice: _SamplerState, line: Logits, sequence: Sequence) -> Logits:
        """Add the request's bias; returns the row as the model computed it, where somebody will ask for that."""
        before = line.copy() if sequence.logprobs is not None else line
        if voice.bias_ids.size:
            line[voice.bias_ids] += voice.bias
        return before

    def _pick(self, voice: _SamplerState, line: Logits, row: int) -> int:
        token = int(line.argmax())
        if not np.isfinite(line[token]):
            raise DecodeFailed("The model computed a logit that is not a number.")
        if voice.chain is None:
            return token
        return int(llama.llama_sampler_sample(voice.chain, self._context, row))

    def _logprob(self, line: Logits, token: int, num_top: int) -> TokenLogprob:
        """Natural logarithms of the softmax of a row, before temperature and filters."""
        largest = float(line.max())
        total = largest + float(np.log(np.exp(line - largest).sum()))
        top = []
        if num_top:
            likely = np.argpartition(line, -num_top)[-num_top:]
            likely = likely[np.argsort(-line[likely], kind="stable")]
            top = [self._named(int(other), float(line[other]) - total) for other in likely]
        return TokenLogprob(piece=self._piece(token), logprob=float(line[token]) - total, top=top)

    def _named(self, token: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(piece=self._piece(token), logprob=logprob)

    def _piece(self, token: int) -> bytes:
        return self._tokenizer.piece(token) or self._tokenizer.text(token).encode()

    def _is_plain(self, entry: StepEntry) -> bool:
        sequence = entry.sequence
        return (
            entry.num_rows == 1
            and sequence.constraint is None
            and sequence.logprobs is None
            and self._voices[sequence].is_plain
        )

    def _voice(self, sequence: Sequence) -> _SamplerState:
        sampling = sequence.sampling
        plain = sampling.temperature == 0 and not _has_penalty(sampling) and sampling.repeat_penalty == 1
        chain = None if plain else _chain(sequence, self._tokenizer.num_vocab, self._context_size)
        ids = np.array(list(sampling.logit_bias), np.int64)
        return _SamplerState(chain, ids, np.array(list(sampling.logit_bias.values()), np.float32))


def _best(logits: Logits) -> list[int]:
    """The largest of each row."""
    best = logits.argmax(axis=1)
    if not np.isfinite(logits[np.arange(len(logits)), best]).all():
        raise DecodeFailed("The model computed a logit that is not a number.")
    tokens: list[int] = best.tolist()
    return tokens


def _has_penalty(sampling: SamplingParams) -> bool:
    return sampling.frequency_penalty != 0 or sampling.presence_penalty != 0


def _chain(sequence: Sequence, num_vocab: int, context_size: int) -> Any:  # Any: a pointer
    """llama.cpp's samplers in its own usual order.

    `repeat_penalty` looks at the prompt's last tokens too, as llama.cpp's users know it; OpenAI's two penalties count
    the answer only, so they get a sampler of their own that has not seen the prompt.
    """
    sampling = sequence.sampling
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:  # Any: a pointer
        llama.llama_sampler_chain_add(chain, sampler)

    if sampling.repeat_penalty != 1:
        repeat = llama.llama_sampler_init_penalties(num_vocab, _PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0)
        for token in sequence.tokens[-_PENALTY_WINDOW:]:
            llama.llama_sampler_accept(repeat, token)
        add(repeat)
    if _has_penalty(sampling):
        penalties = (sampling.frequency_penalty, sampling.presence_penalty)
        add(llama.llama_sampler_init_penalties(num_vocab, context_size, 1.0, *penalties))
    if sampling.temperature == 0:
        add(llama.llama_sampler_init_greedy())
        return chain
    if sampling.top_k > 0:
        add(llama.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1:
        add(llama.llama_sampler_init_typical(sampling.typical_p, 1))
    if sampling.top_p < 1:
        add(llama.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        add(llama.llama_sampler_init_min_p(sampling.min_p, 1))
    add(llama.llama_sampler_init_temp(sampling.temperature))
    seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(4), "little")
    add(llama.llama_sampler_init_dist(seed))
    return chain
