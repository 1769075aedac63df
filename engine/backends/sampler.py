"""Sampling: greedy rows of logits all at once, the others one by one, by what the backend calls a chooser.

The expensive work happens in C without the lock of Python, but in many short calls, of which each takes the lock again. Whether
a few threads are faster depends on the parameters and on the machine, so it is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.backends.logits import Logits, best_token, best_tokens, log_total, top_tokens
from engine.errors import EngineError
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import SampleResult, StepEntry
from engine.structured.bitmask import best_allowed, forbid, scratch_mask
from engine.structured.grammar import GrammarState
from engine.types import SamplingParams, TokenLogprob

PENALTY_WINDOW: Final = 64  # tokens, of the prompt too, that `repeat_penalty` counts
_WEIGHT: Final = 0.5  # of a new measurement
_LEAST_GAIN: Final = 0.9  # of the time of one thread: for less, threads of others should not wait
_TRIAL_STEPS: Final = 32  # from one trial of the other way to the next

_Job = tuple[int, StepEntry, int]  # index of the result, entry, first row of logits


class Chooser(Protocol):
    """Chooses the next tokens of one sequence; it has the state of its random numbers and of its penalties."""

    def choose(self, row: Logits) -> int:
        """Choose a token by its logits, and count it; `row` is unchanged afterwards. Raises DecodeFailed."""

    def close(self) -> None:
        """Free the state."""


class SampledTokenizer(Protocol):
    """The part of a vocabulary that a sampler reads."""

    @property
    def end_tokens(self) -> list[int]:
        """All tokens that end a generation."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""

    def text(self, token: int) -> str:
        """Spelling of a token in the vocabulary."""


@dataclass(slots=True)
class _SamplerState:
    """Sampler of one sequence. `chooser` is None where the token is that of the largest logit."""

    chooser: Chooser | None
    bias_ids: NDArray[np.int64]
    bias: NDArray[np.float32]
    is_plain: bool  # the token is that of the largest logit, and nothing else is asked for


class _Distribution(NamedTuple):
    """Logarithm of the sum of exponentials of a row, and the likeliest tokens."""

    log_total: float
    top: list[TokenLogprob]


class Sharing:
    """Decides whether threads share the rows of a step. The other way is tried now and then, and taken if it is faster."""

    def __init__(self) -> None:
        self._is_shared = False
        self._usual_seconds = 0.0  # for a row
        self._num_steps = 0

    def choose(self) -> bool:
        """Should the rows of the next step be shared?"""
        is_trial = self._num_steps % _TRIAL_STEPS == 1
        self._num_steps += 1
        return self._is_shared != is_trial

    def record(self, *, is_shared: bool, num_rows: int, seconds: float) -> None:
        """Record the time of a step."""
        usual, new = self._usual_seconds, seconds / num_rows
        if is_shared == self._is_shared:
            self._usual_seconds = usual + _WEIGHT * (new - usual) if usual else new
        elif new < (_LEAST_GAIN * usual if is_shared else usual / _LEAST_GAIN):
            self._is_shared, self._usual_seconds = is_shared, new


class Sampler:
    """Samplers of all open sequences. The rows of a step lie in `logits` in the order of its entries.

    `make_chooser` is called for each sequence that is not greedy, or has penalties.
    """

    def __init__(self, make_chooser: Callable[[Sequence], Chooser], tokenizer: SampledTokenizer, threads: int) -> None:
        self._make_chooser = make_chooser
        self._tokenizer = tokenizer
        self._end_tokens = np.array(tokenizer.end_tokens, np.int64)
        self._end_set = set(tokenizer.end_tokens)
        self._states: dict[Sequence, _SamplerState] = {}
        self._threads = threads
        cpus = os.sched_getaffinity(0)  # the thread that decodes is bound to a core later, and starts those of the pool
        self._pool = ThreadPoolExecutor(threads, "sampler", os.sched_setaffinity, (0, cpus)) if threads > 1 else None
        self._sharing = Sharing()

    def open(self, sequence: Sequence) -> None:
        """Make the sampler, unless it exists: its penalties and its seed must survive the loss of a slot."""
        if sequence not in self._states:
            self._states[sequence] = self._new_state(sequence)

    def close(self, sequence: Sequence) -> None:
        """Free the sampler."""
        state = self._states.pop(sequence, None)
        if state is not None and state.chooser is not None:
            state.chooser.close()

    def sample(self, entries: list[StepEntry], logits: Logits) -> list[SampleResult]:
        """Return one result per entry."""
        plain = [self._is_plain(entry) for entry in entries]
        if all(plain):
            return self._sample_plain(entries, logits)
        self._forbid_ends(entries, logits)
        results: list[SampleResult | None] = [None] * len(entries)
        jobs: list[_Job] = []
        rows, first_row = [], 0
        for index, entry in enumerate(entries):
            if plain[index]:
                rows.append((index, first_row))
            else:
                jobs.append((index, entry, first_row))
            first_row += entry.num_rows
        if rows:
            best = best_tokens(logits[[row for _, row in rows]])
            for (index, _), token in zip(rows, best, strict=True):
                results[index] = SampleResult([token])
        for index, sampled in self._run(jobs, logits):
            results[index] = sampled
        return [result for result in results if result is not None]

    def _sample_plain(self, entries: list[StepEntry], logits: Logits) -> list[SampleResult]:
        """Take the largest logits. A forbidden end is seldom among them, so only then ends are excluded."""
        tokens = best_tokens(logits)
        if not self._end_set.isdisjoint(tokens):
            for index, entry in enumerate(entries):
                if tokens[index] in self._end_set and entry.sequence.ignore_eos:
                    logits[index, self._end_tokens] = -np.inf
                    tokens[index] = best_token(logits[index])
        return [SampleResult([token]) for token in tokens]

    def _forbid_ends(self, entries: list[StepEntry], logits: Logits) -> None:
        rows: list[int] = []
        first_row = 0
        for entry in entries:
            end = first_row + entry.num_rows
            if entry.sequence.ignore_eos and entry.sequence.constraint is None:
                if not entry.wants_prompt_logprobs:
                    rows += range(first_row, end)
                elif entry.start + len(entry.tokens) == len(entry.sequence.tokens):
                    rows.append(end - 1)  # the other rows score the prompt
            first_row = end
        if rows:
            logits[np.array(rows)[:, None], self._end_tokens] = -np.inf

    def _run(self, jobs: list[_Job], logits: Logits) -> list[tuple[int, SampleResult]]:
        if self._pool is None or len(jobs) < 2:
            return self._work(jobs, logits)
        is_shared, began = self._sharing.choose(), time.perf_counter()
        results = self._share(self._pool, jobs, logits) if is_shared else self._work(jobs, logits)
        num_rows = sum(entry.num_rows for _, entry, _ in jobs)
        self._sharing.record(is_shared=is_shared, num_rows=num_rows, seconds=time.perf_counter() - began)
        return results

    def _work(self, jobs: list[_Job], logits: Logits) -> list[tuple[int, SampleResult]]:
        return [(index, self._sample(entry, logits, first_row)) for index, entry, first_row in jobs]

    def _share(self, pool: ThreadPoolExecutor, jobs: list[_Job], logits: Logits) -> list[tuple[int, SampleResult]]:
        parts = [jobs[number :: self._threads] for number in range(min(self._threads, len(jobs)))]
        futures = [pool.submit(self._work, part, logits) for part in parts[1:]]
        try:
            results = self._work(parts[0], logits)
        finally:
            wait(futures)  # a failed step frees samplers, which the other threads use
        return results + [result for future in futures for result in future.result()]

    def _sample(self, entry: StepEntry, logits: Logits, first_row: int) -> SampleResult:
        if entry.wants_prompt_logprobs:
            return self._score(entry, logits, first_row)
        return self._sample_next(entry, logits, first_row)

    def _score(self, entry: StepEntry, logits: Logits, first_row: int) -> SampleResult:
        """Compute the logprob of each token of a prompt chunk; sample the next token after the last chunk."""
        sequence = entry.sequence
        scored = [] if entry.start else [self._named(entry.tokens[0], 0.0)]
        end = entry.start + len(entry.tokens)
        for number, token in enumerate(sequence.tokens[entry.start + 1 : end + 1]):
            row = logits[first_row + number]
            scored.append(self._logprob(row, token, self._distribution(row, sequence.logprobs or 0)))
        if end < len(sequence.tokens):
            return SampleResult([], prompt_logprobs=scored)
        last = msgspec.structs.replace(entry, num_rows=1, wants_prompt_logprobs=False)
        sampled = self._sample_next(last, logits, first_row + entry.num_rows - 1)
        return msgspec.structs.replace(sampled, prompt_logprobs=scored)

    def _sample_next(self, entry: StepEntry, logits: Logits, first_row: int) -> SampleResult:
        if entry.sequence.constraint is None:
            return self._sample_free(entry, logits, first_row)
        try:
            return self._sample_constrained(entry.sequence, entry.sequence.constraint, logits[first_row])
        except EngineError as error:
            return SampleResult([], failure=error)

    def _sample_free(self, entry: StepEntry, logits: Logits, first_row: int) -> SampleResult:
        """Sample the rows of an entry one by one, as long as its drafts are accepted."""
        sequence, state = entry.sequence, self._states[entry.sequence]
        drafts = entry.tokens[len(entry.tokens) - entry.num_drafts :]
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        for number in range(entry.num_rows):
            row = logits[first_row + number]
            token = self._pick(state, row)
            tokens.append(token)
            if sequence.logprobs is not None:
                logprobs.append(self._logprob(row, token, self._distribution(row, sequence.logprobs)))
            if number == len(drafts) or token != drafts[number]:
                break
            if token in self._end_set and not sequence.ignore_eos:
                break  # what was computed behind the end leaves the memory as a wrong draft does
        return SampleResult(tokens, len(tokens) - 1, logprobs)

    def _sample_constrained(self, sequence: Sequence, grammar: GrammarState, row: Logits) -> SampleResult:
        """Sample an allowed token. The logprobs are those without the constraint, which may change the row."""
        if grammar.is_finished:
            return SampleResult([grammar.end_token])
        wants_logprobs = sequence.logprobs is not None
        distribution = self._distribution(row, sequence.logprobs or 0) if wants_logprobs else None
        token = self._pick(self._states[sequence], row, grammar)
        logprobs = [] if distribution is None else [self._logprob(row, token, distribution)]
        forced = grammar.accept(token)
        return SampleResult([token, *forced], 0, logprobs, is_complete=grammar.is_finished)

    def _pick(self, state: _SamplerState, row: Logits, grammar: GrammarState | None = None) -> int:
        """Choose a token with the logit bias. The row is unchanged afterwards, but for the tokens that a grammar forbids."""
        unbiased = row[state.bias_ids]
        row[state.bias_ids] = unbiased + state.bias
        if grammar is not None:
            token = self._pick_allowed(state, row, grammar)
        else:
            token = best_token(row) if state.chooser is None else state.chooser.choose(row)
        row[state.bias_ids] = unbiased
        return token

    def _pick_allowed(self, state: _SamplerState, row: Logits, grammar: GrammarState) -> int:
        """Check the likeliest token first: a mask is computed only where the grammar forbids it."""
        if state.chooser is None and grammar.allows(best := best_token(row)):
            return best
        mask = scratch_mask(len(row))
        grammar.fill_mask(mask)
        if state.chooser is None:
            return best_allowed(row, mask)
        forbid(row, mask)
        return state.chooser.choose(row)

    def _distribution(self, row: Logits, num_top: int) -> _Distribution:
        """What logprobs need of a row: those of the softmax, before temperature and filters."""
        best = best_token(row)
        total = log_total(row, best)
        top = []
        if num_top:
            likely = top_tokens(row, num_top)
            logits = row[likely]
            order = np.argsort(-logits, kind="stable")[:num_top]
            pairs = zip(likely[order].tolist(), logits[order].tolist(), strict=True)
            top = [self._named(token, logit - total) for token, logit in pairs]
        return _Distribution(total, top)

    def _logprob(self, row: Logits, token: int, distribution: _Distribution) -> TokenLogprob:
        return self._named(token, float(row[token]) - distribution.log_total, distribution.top)

    def _named(self, token: int, logprob: float, top: list[TokenLogprob] | None = None) -> TokenLogprob:
        piece = self._tokenizer.piece(token)
        named = piece or self._tokenizer.text(token).encode()
        return TokenLogprob(piece=named, logprob=logprob, is_hidden=not piece, top=top or [])

    def _is_plain(self, entry: StepEntry) -> bool:
        return entry.num_rows == 1 and self._states[entry.sequence].is_plain

    def _new_state(self, sequence: Sequence) -> _SamplerState:
        sampling = sequence.sampling
        is_greedy = sampling.temperature == 0 and not has_penalty(sampling) and sampling.repeat_penalty == 1
        chooser = None if is_greedy else self._make_chooser(sequence)
        ids = np.array(list(sampling.logit_bias), np.int64)
        bias = np.array(list(sampling.logit_bias.values()), np.float32)
        is_plain = is_greedy and not len(ids) and sequence.constraint is None and sequence.logprobs is None
        return _SamplerState(chooser, ids, bias, is_plain)


def has_penalty(sampling: SamplingParams) -> bool:
    """Is there a penalty of OpenAI's, which count the output alone?"""
    return sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
