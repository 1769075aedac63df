"""Chooses tokens by llama.cpp's samplers, which get only the candidates that can matter: the choice is that of all tokens.

A filter or a draw over a large vocabulary takes milliseconds, nearly all of them for tokens that do not count. `_candidates`
leaves out tokens without any effect on what llama.cpp computes, to the last bit. Where the order of equal logits or a rounding
could matter, llama.cpp gets the whole vocabulary.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import llama_cpp as llama
import numpy as np

from engine.backends.llama.nucleus import NucleusDraw
from engine.backends.llama.typical import TypicalDraw
from engine.backends.logits import Logits, Tokens, best_token, draw, top_tokens
from engine.backends.sampler import PENALTY_WINDOW, has_penalty
from engine.scheduler.sequence import Sequence
from engine.types import SamplingParams

_SMALL: Final = 16_384  # tokens of a vocabulary that llama.cpp gets whole
_BLOCK: Final = 4096
_MARGIN: Final = 0.1  # far more than the rounding of a logit
_LEAST_TEMPERATURE: Final = 1e-30  # quotients of a smaller one overflow
_UNSEEDED: Final = 0xFFFFFFFF  # llama.cpp takes this seed for none
_ITEM: Final = np.dtype([("token", np.int32), ("logit", np.float32), ("p", np.float32)])


class ChainChooser:
    """The samplers of one sequence: penalties, which get the tokens that they count; filters; temperature and draw."""

    def __init__(self, sequence: Sequence, *, num_vocab: int, context_size: int) -> None:
        sampling = self._sampling = sequence.sampling
        self._temperature = max(sampling.temperature, _LEAST_TEMPERATURE)
        self._penalties = _chain(_penalties(sequence, num_vocab, context_size))
        self._counted = np.unique(np.array(sequence.tokens[-PENALTY_WINDOW:], np.intp))
        filters = _filters(sampling)
        self._filters = _chain(filters)
        seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(4), "little")
        seed = min(seed, _UNSEEDED - 1)
        self._draws = _chain([llama.llama_sampler_init_temp(self._temperature), llama.llama_sampler_init_dist(seed)])
        self._draw = _own_draw(sampling, self._temperature) if num_vocab >= _SMALL else None
        self._random = np.random.RandomState(seed)
        self._num_ahead = 0  # numbers that `_random` has given and `_draws` has not drawn yet

    def choose(self, row: Logits) -> int:
        if not (has_penalty(self._sampling) or self._sampling.repeat_penalty != 1):
            return self._choose(row)
        counted = self._counted
        logits = row[counted]
        _array.fill(counted, logits)
        _array.apply(self._penalties)
        row[counted] = _array.logits
        token = self._choose(row)
        row[counted] = logits
        llama.llama_sampler_accept(self._penalties, token)
        if token not in counted:
            self._counted = np.append(counted, token)
        return token

    def close(self) -> None:
        for chain in (self._penalties, self._filters, self._draws):
            llama.llama_sampler_free(chain)

    def _choose(self, row: Logits) -> int:
        if self._sampling.temperature == 0:
            return best_token(row)
        if self._draw is None:
            self._filter(row)
        else:
            token = self._draw(row, _uniform(self._random))
            if token is not None:
                self._num_ahead += 1
                return token
            self._catch_up()
            self._fill_all(row)
            _array.apply(self._filters)
        _array.apply(self._draws)
        return _array.selected

    def _filter(self, row: Logits) -> None:
        """Fill the array with the tokens that the filters keep."""
        candidates = _candidates(row, row[best_token(row)], self._sampling)
        if candidates is None:
            self._fill_all(row)
        else:
            _array.fill(candidates.tokens, candidates.logits, is_sorted=candidates.is_sorted)
        _array.apply(self._filters)

    def _fill_all(self, row: Logits) -> None:
        """Fill the array with all tokens, but for the forbidden ones where their entropy would not be a number."""
        if self._sampling.typical_p < 1:
            finite = _finite(row)
            _array.fill(finite.tokens, finite.logits)
        else:
            _array.fill(None, row)

    def _catch_up(self) -> None:
        """Draw as often as without llama.cpp; a draw from a single token takes a random number, too."""
        for _ in range(self._num_ahead):
            _array.fill(None, np.zeros(1, np.float32))
            _array.apply(self._draws)
        self._num_ahead = 0


class _Candidates(NamedTuple):
    """Tokens that the filters get, by id or `is_sorted` by logit."""

    tokens: Tokens
    logits: Logits
    is_sorted: bool = False


def _candidates(row: Logits, largest: np.float32, sampling: SamplingParams) -> _Candidates | None:
    """The tokens that matter to the filters; None for all."""
    if len(row) < _SMALL:
        return None
    if sampling.top_k > 0:
        return _top_k(row, sampling.top_k) if sampling.top_k < _BLOCK else None
    if sampling.typical_p < 1:
        return _finite(row)
    return _above(row, float(largest) + float(np.log(np.float32(sampling.min_p))) - _MARGIN)


def _top_k(row: Logits, top_k: int) -> _Candidates | None:
    """The largest logits in order; None if two are equal, of which llama.cpp would take either."""
    tokens = top_tokens(row, top_k + 1)
    logits = row[tokens]
    order = np.argsort(-logits)
    ordered = logits[order]
    if (ordered[1:] == ordered[:-1]).any():
        return None
    return _Candidates(tokens[order[:top_k]], ordered[:top_k], is_sorted=True)


def _finite(row: Logits) -> _Candidates:
    """All but the forbidden tokens, with which the entropy of `typical_p` would not be a number."""
    tokens = np.flatnonzero(row > -np.inf)
    return _Candidates(tokens, row[tokens])


def _above(row: Logits, bound: float) -> _Candidates:
    """The tokens that `min_p` may keep."""
    tokens = np.flatnonzero(row > bound)
    return _Candidates(tokens, row[tokens])


class _Array(threading.local):
    """llama.cpp's array of tokens with logits, in memory of this thread: valid until the next `fill`."""

    def __init__(self) -> None:
        self._items = np.empty(0, _ITEM)
        self._raw = llama.llama_token_data_array()

    def fill(self, tokens: Tokens | None, logits: Logits, *, is_sorted: bool = False) -> None:
        """Set the content; without `tokens` it is the whole vocabulary."""
        number = len(logits)
        if len(self._items) < number:
            self._items = np.empty(number, _ITEM)
            pointer = ctypes.cast(self._items.ctypes.data, ctypes.POINTER(llama.llama_token_data))
            self._raw.data = pointer  # type: ignore[assignment]  # the stub has an array
        self._items["token"][:number] = np.arange(number, dtype=np.int32) if tokens is None else tokens
        self._items["logit"][:number] = logits
        self._raw.size, self._raw.selected, self._raw.sorted = number, -1, is_sorted

    def apply(self, chain: Any) -> None:  # Any: a pointer
        llama.llama_sampler_apply(chain, ctypes.byref(self._raw))

    @property
    def logits(self) -> Logits:
        """The logits that are left."""
        return np.asarray(self._items["logit"][: self._raw.size])

    @property
    def selected(self) -> int:
        """The token that was drawn."""
        return int(self._items["token"][self._raw.selected])


_array: Final = _Array()


def _own_draw(sampling: SamplingParams, temperature: float) -> Callable[[Logits, float], int | None] | None:
    """The draw from all logits of a large vocabulary by a random number, if there is one for these parameters."""
    if sampling.top_k > 0:
        return None
    if sampling.typical_p < 1:
        is_alone = sampling.top_p == 1 and sampling.min_p == 0
        return TypicalDraw(sampling.typical_p, temperature) if is_alone else None
    if sampling.top_p < 1:
        return NucleusDraw(sampling.top_p, sampling.min_p, temperature)
    return None if sampling.min_p > 0 else lambda row, random: draw(row, best_token(row), temperature, random)


def _uniform(random: np.random.RandomState) -> float:
    """The number in [0, 1) that C++'s uniform_real_distribution<double> makes of the next 64 bits of a Mersenne Twister."""
    return min(int.from_bytes(random.bytes(8), "little") / 2**64, 1 - 2**-53)


def _chain(samplers: list[Any]) -> Any:  # Any: pointers
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    for sampler in samplers:
        llama.llama_sampler_chain_add(chain, sampler)
    return chain


def _penalties(sequence: Sequence, num_vocab: int, context_size: int) -> list[Any]:  # Any: pointers
    """Samplers of penalties.

    `repeat_penalty` counts the last tokens of the prompt too, as in llama.cpp; the two penalties of OpenAI count only the
    output, so they get a sampler of their own that has not seen the prompt.
    """
    sampling = sequence.sampling
    samplers = []
    if sampling.repeat_penalty != 1:
        repeat = llama.llama_sampler_init_penalties(num_vocab, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0)
        for token in sequence.tokens[-PENALTY_WINDOW:]:
            llama.llama_sampler_accept(repeat, token)
        samplers.append(repeat)
    if has_penalty(sampling):
        penalties = (sampling.frequency_penalty, sampling.presence_penalty)
        samplers.append(llama.llama_sampler_init_penalties(num_vocab, context_size, 1.0, *penalties))
    return samplers


def _filters(sampling: SamplingParams) -> list[Any]:  # Any: pointers
    """Samplers of filters, in the default order of llama.cpp."""
    samplers = []
    if sampling.top_k > 0:
        samplers.append(llama.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1:
        samplers.append(llama.llama_sampler_init_typical(sampling.typical_p, 1))
    if sampling.top_p < 1:
        samplers.append(llama.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        samplers.append(llama.llama_sampler_init_min_p(sampling.min_p, 1))
    return samplers
