"""Chooses tokens with numpy, in the order of llama.cpp's samplers, so that the same parameters mean the same on both backends."""

from __future__ import annotations

import os
from collections import Counter, deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.backends.logits import WEIGHT_ERROR, Logits, Tokens, best_token, draw, log_total
from engine.backends.sampler import PENALTY_WINDOW, has_penalty
from engine.scheduler.sequence import Sequence

_FIRST_CANDIDATES: Final = 1024  # sorted first; nearly always they have all of `top_p`
_LEAST_TEMPERATURE: Final = 1e-30  # quotients of a smaller one overflow
_RANGE: Final = 20.0  # a token further below the likeliest one has hardly any probability
_ROUNDING: Final = 2e-7  # relative error of two logits that are divided and subtracted in single precision


class NumpyChooser:
    """Random numbers and penalties of one sequence."""

    def __init__(self, sequence: Sequence) -> None:
        sampling = sequence.sampling
        self._sampling = sampling
        self._has_penalties = has_penalty(sampling) or sampling.repeat_penalty != 1
        self._is_filtered = sampling.top_k > 0 or sampling.typical_p < 1 or sampling.top_p < 1 or sampling.min_p > 0
        self._temperature = max(sampling.temperature, _LEAST_TEMPERATURE)
        self._recent = deque(sequence.tokens[-PENALTY_WINDOW:], PENALTY_WINDOW)
        self._counts: Counter[int] = Counter()
        seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(8), "little")
        self._random = np.random.default_rng(seed)

    def choose(self, row: Logits) -> int:
        if not self._has_penalties:
            return self._choose(row)
        counted = np.array(sorted({*self._recent, *self._counts}), np.intp)
        logits = row[counted]
        self._penalise(row)
        token = self._choose(row)
        row[counted] = logits
        self._recent.append(token)
        self._counts[token] += 1
        return token

    def close(self) -> None: ...

    def _penalise(self, row: Logits) -> None:
        """Apply `repeat_penalty` to the last tokens of prompt and output, and OpenAI's two to all of the output."""
        sampling = self._sampling
        if sampling.repeat_penalty != 1:
            ids = np.array(sorted(set(self._recent)), np.int64)
            logits = row[ids]
            row[ids] = np.where(logits > 0, logits / sampling.repeat_penalty, logits * sampling.repeat_penalty)
        if self._counts and (sampling.frequency_penalty or sampling.presence_penalty):
            ids = np.fromiter(self._counts, np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            row[ids] -= counts * sampling.frequency_penalty + sampling.presence_penalty

    def _choose(self, row: Logits) -> int:
        best = best_token(row)
        if self._sampling.temperature == 0:
            return best
        random, temperature = self._random.random(), self._temperature
        if not self._is_filtered:
            error = WEIGHT_ERROR + _ROUNDING * (abs(float(row[best])) / temperature + _RANGE)
            if (token := draw(row, best, temperature, random, error)) is not None:
                return token
        return self._draw(row, random)

    def _draw(self, row: Logits, random: float) -> int:
        """Filter by top_k, typical_p, top_p and min_p, then draw at the temperature."""
        sampling = self._sampling
        ids: Tokens | None = None
        logits = row
        if 0 < sampling.top_k < len(row):
            ids = np.argpartition(row, -sampling.top_k)[-sampling.top_k :]
            logits = row[ids]
        if sampling.typical_p < 1:
            ids, logits = _kept(ids, logits, _typical(logits, sampling.typical_p))
        if sampling.top_p < 1:
            ids, logits = _kept(ids, logits, _nucleus(logits, sampling.top_p))
        if sampling.min_p > 0:
            ids, logits = _kept(ids, logits, np.flatnonzero(logits >= logits.max() + np.log(sampling.min_p)))
        weights = np.exp((logits - logits.max()).astype(np.float64) / self._temperature)
        totals = np.cumsum(weights)
        at = int(np.searchsorted(totals, random * totals[-1], side="right"))
        at = min(at, int(np.flatnonzero(weights)[-1]))
        return int(ids[at]) if ids is not None else at


def _kept(ids: Tokens | None, logits: Logits, kept: Tokens) -> tuple[Tokens, Logits]:
    return (kept if ids is None else ids[kept]), logits[kept]


def _softmax(logits: Logits) -> NDArray[np.float64]:
    weights = np.exp((logits - logits.max()).astype(np.float64))
    return np.asarray(weights / weights.sum())


def _nucleus(logits: Logits, top_p: float) -> Tokens:
    """Indices of the likeliest tokens whose probabilities reach `top_p` together; at least one."""
    if len(logits) > _FIRST_CANDIDATES:
        first = _by_logit(logits, np.argpartition(logits, -_FIRST_CANDIDATES)[-_FIRST_CANDIDATES:])
        largest = logits[first[0]]
        total = np.exp(log_total(logits, int(first[0])) - float(largest))
        totals = np.cumsum(np.exp((logits[first] - largest).astype(np.float64))) / total
        if totals[-1] >= top_p and np.abs(totals - top_p).min() > 2 * WEIGHT_ERROR:
            return np.asarray(first[: int(np.searchsorted(totals, top_p)) + 1])
    probabilities = _softmax(logits)
    order = _by_logit(logits, np.arange(len(logits)))
    return np.asarray(order[: int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1])


def _by_logit(logits: Logits, tokens: Tokens) -> Tokens:
    return np.asarray(tokens[np.argsort(-logits[tokens], kind="stable")])


def _typical(logits: Logits, typical_p: float) -> Tokens:
    """Indices of the tokens whose surprise is closest to the entropy, up to `typical_p` (Meister et al. 2022)."""
    probabilities = _softmax(logits)
    with np.errstate(divide="ignore"):
        surprise = -np.log(probabilities)
    entropy = float((probabilities * np.where(probabilities > 0, surprise, 0)).sum())
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    totals = np.cumsum(probabilities[order])
    return np.asarray(order[: int(np.searchsorted(totals, typical_p)) + 1])
