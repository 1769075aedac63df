"""Logprobs, biases and constraints of steps over a large vocabulary, against the softmax in double precision."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, Final

import numpy as np
import pytest

from engine.backends.llama.sampling import ChainChooser
from engine.backends.sampler import Sampler, Sharing
from engine.errors import DecodeFailed
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import SampleResult, StepEntry
from engine.types import SamplingParams, TokenLogprob
from tests.support.engine import make_sequence
from tests.unit.engine.backends.rows import rows_of

SIZE: Final = 40_003
ROWS: Final = rows_of(SIZE)


class Numbers:
    """A vocabulary in which a token stands for its number."""

    end_tokens: Final = [0]

    def piece(self, token: int) -> bytes:
        return str(token).encode()

    def text(self, token: int) -> str:
        return str(token)


class EvenTokens:
    """A constraint that allows even tokens."""

    is_finished = False

    def allows(self, token: int) -> bool:
        return token % 2 == 0

    def fill_mask(self, mask: np.ndarray) -> None:
        mask[:] = 0x55555555

    def accept(self, token: int) -> list[int]:
        assert self.allows(token)
        return []


def sample(*rows: np.ndarray, threads: int = 1, tokens: tuple[int, ...] = (9,), **given: Any) -> list[SampleResult]:
    """The results of a step of sequences with a row each."""
    chooser = partial(ChainChooser, num_vocab=SIZE, context_size=64)
    sampler = Sampler(chooser, Numbers(), threads)
    given = {"sampling": SamplingParams(temperature=0), **given}
    entries = [
        StepEntry(make_sequence(str(number), [*tokens], **given), number, 0, [*tokens], 1)
        for number in range(len(rows))
    ]
    for entry in entries:
        sampler.open(entry.sequence)
    results = sampler.sample(entries, np.array(rows))
    for entry in entries:
        sampler.close(entry.sequence)
    return results


def log_softmax(row: np.ndarray) -> np.ndarray:
    wide = row.astype(np.float64)
    return np.asarray(wide - wide.max() - np.log(np.exp(wide - wide.max()).sum()))


def assert_right(found: TokenLogprob, row: np.ndarray, num_top: int) -> None:
    expected = log_softmax(row)
    assert found.logprob == pytest.approx(expected[int(found.piece)], abs=1e-5, rel=1e-6)
    tops = [int(top.piece) for top in found.top]
    assert tops == np.argsort(-row, kind="stable")[:num_top][: len(tops)].tolist(), "the first of equals first"
    assert [top.logprob for top in found.top] == pytest.approx(expected[tops].tolist(), abs=1e-5, rel=1e-6)
    assert len(tops) == min(num_top, np.count_nonzero(row > -np.inf))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("num_top", [0, 1, 2, 20])
def test_logprobs_are_those_of_the_softmax(name: str, num_top: int) -> None:
    [result] = sample(ROWS[name], logprobs=num_top)
    assert result.tokens == [int(ROWS[name].argmax())]
    assert_right(result.logprobs[0], ROWS[name], num_top)


@pytest.mark.parametrize("name", ROWS)
def test_logprobs_of_a_sampled_token_are_those_before_bias_penalties_and_filters(name: str) -> None:
    sampling = SamplingParams(seed=3, top_p=0.9, repeat_penalty=1.5, logit_bias={3: 2.0, 9: -100.0, 11: 5.0})
    [result] = sample(ROWS[name], logprobs=5, sampling=sampling, tokens=(9, 11, 3))
    assert_right(result.logprobs[0], ROWS[name], 5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_of_a_constrained_token_are_those_without_the_constraint(temperature: float) -> None:
    row = ROWS["usual"].copy()
    row[13] = row.max() + 1
    sampling = SamplingParams(temperature=temperature, seed=3, logit_bias={7: 50.0, 20: 60.0})
    [result] = sample(row, logprobs=3, sampling=sampling, constraint=EvenTokens())
    assert result.tokens == [20]
    assert_right(result.logprobs[0], row, 3)


def test_a_bias_decides_a_greedy_token() -> None:
    row = ROWS["usual"]
    [result] = sample(row, sampling=SamplingParams(temperature=0, logit_bias={77: 100.0, int(row.argmax()): -50.0}))
    assert result.tokens == [77]


@pytest.mark.parametrize("given", [{}, {"logprobs": 0}, {"sampling": SamplingParams(seed=1, top_k=1)}], ids=str)
def test_an_end_is_taken_unless_it_is_ignored(given: dict[str, Any]) -> None:
    row = ROWS["usual"].copy()
    row[0] = row.max() + 1
    second = int(row[1:].argmax()) + 1
    assert [result.tokens for result in sample(row, ROWS["peaked"], row, **given)] == [[0], [SIZE // 3], [0]]
    ignored = sample(row, ROWS["peaked"], row, ignore_eos=True, **given)
    assert [result.tokens for result in ignored] == [[second], [SIZE // 3], [second]]


@pytest.mark.parametrize("given", [{}, {"logprobs": 2}, {"sampling": SamplingParams(seed=1, top_k=40)}], ids=str)
def test_a_row_that_is_not_a_number_fails_the_step(given: dict[str, Any]) -> None:
    broken = ROWS["usual"].copy()
    broken[5] = np.nan
    with pytest.raises(DecodeFailed, match="not a number"):
        sample(ROWS["usual"], broken, **given)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sharing, "choose", lambda _: True)
    rows = [ROWS["usual"], ROWS["peaked"], ROWS["many ties"], ROWS["half forbidden"]] * 8
    given: dict[str, Any] = {"logprobs": 2, "sampling": SamplingParams(seed=1, top_p=0.9)}
    assert sample(*rows, threads=4, **given) == sample(*rows, **given)


def shares(sharing: Sharing, steps: int, *, alone: float, shared: float) -> list[bool]:
    """Whether each of these steps of ten rows is shared, if a row takes so many seconds either way."""
    chosen = []
    for _ in range(steps):
        chosen.append(sharing.choose())
        sharing.record(is_shared=chosen[-1], num_rows=10, seconds=10 * (shared if chosen[-1] else alone))
    return chosen


def test_threads_share_the_rows_where_that_takes_less_time() -> None:
    assert shares(Sharing(), 320, alone=3e-4, shared=2e-4).count(True) > 300
    assert shares(Sharing(), 320, alone=6e-5, shared=1e-4).count(True) <= 10
    assert shares(Sharing(), 320, alone=1e-4, shared=0.95e-4).count(True) <= 10


def test_the_choice_follows_the_rows() -> None:
    sharing = Sharing()
    shares(sharing, 100, alone=6e-5, shared=1e-4)
    assert shares(sharing, 320, alone=3e-3, shared=1.6e-3).count(True) > 270
    assert shares(sharing, 320, alone=6e-5, shared=1e-4).count(True) < 50


def test_drafts_behind_an_end_are_not_accepted() -> None:
    sampler = Sampler(partial(ChainChooser, num_vocab=8, context_size=64), Numbers(), 1)
    rows = np.zeros((4, 8), np.float32)
    for row, token in zip(rows, [5, 0, 6, 7], strict=True):
        row[token] = 1.0
    sequence = make_sequence("a", [9], sampling=SamplingParams(temperature=0))
    sampler.open(sequence)
    [result] = sampler.sample([StepEntry(sequence, 0, 0, [9, 5, 0, 6], 4, 3)], rows)
    assert (result.tokens, result.num_accepted) == ([5, 0], 1), "the memory forgets the end and what follows"


def test_a_step_that_fails_ends_in_all_threads_first() -> None:
    is_busy, may_go = threading.Event(), threading.Event()

    class Blocking:
        def __init__(self, _: Sequence) -> None: ...

        def choose(self, row: np.ndarray) -> int:
            if np.isnan(row[0]):
                assert is_busy.wait(30)
                threading.Timer(0.05, may_go.set).start()
                raise DecodeFailed("not a number")
            if row[0]:
                is_busy.set()
                assert may_go.wait(30)
            return 1

        def close(self) -> None: ...

    sampler = Sampler(Blocking, Numbers(), 2)
    entries = [
        StepEntry(make_sequence(str(number), [9], sampling=SamplingParams()), number, 0, [9], 1) for number in range(2)
    ]
    for entry in entries:
        sampler.open(entry.sequence)
    sampler.sample(entries, np.zeros((2, 8), np.float32))  # one by one; the next step is shared
    with pytest.raises(DecodeFailed):
        sampler.sample(entries, np.array([[np.nan] * 8, [1.0] * 8], np.float32))
    assert may_go.is_set(), "no thread samples any more"


def test_ends_that_are_ignored_are_forbidden_only_where_a_token_is_chosen() -> None:
    rows = np.random.default_rng(1).normal(size=(3, SIZE)).astype(np.float32)
    rows[2, 0] = 50.0  # the end
    prompt = [9, 0, 7]

    def score(*, ignore_eos: bool) -> SampleResult:
        sampler = Sampler(partial(ChainChooser, num_vocab=SIZE, context_size=64), Numbers(), 1)
        given = {"sampling": SamplingParams(temperature=0), "ignore_eos": ignore_eos, "logprobs": 1}
        sequence = make_sequence("a", prompt, **given)
        sampler.open(sequence)
        [result] = sampler.sample([StepEntry(sequence, 0, 0, prompt, 3, wants_prompt_logprobs=True)], rows.copy())
        return result

    kept, ignored = score(ignore_eos=False), score(ignore_eos=True)
    assert ignored.prompt_logprobs == kept.prompt_logprobs
    assert (kept.tokens[0] == 0, ignored.tokens[0] == 0) == (True, False)
