"""The states of a shard's lines: each line ends once, whatever outcomes, stops and crashes come in which order."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.process.client import EngineLost
from engine.types import Choice, Failed, Finished, FinishReason, Usage
from workers.generation.endpoints.base import EngineOutcome
from workers.shards.shard_progress import Block, Line, LineState, ParsedBody, Record, Retry, ShardProgress, Window

MAX_CRASHES = 3
PARSED = ParsedBody(cast(Any, None), {})


def lost(line: Line, *, was_running: bool = True) -> EngineLost:
    return EngineLost(request_id=line.id, was_running=was_running)


def failed(line: Line, code: str) -> Failed:
    return Failed(request_id=line.id, code=code, message="")


def finished(line: Line, reason: FinishReason = FinishReason.STOP) -> Finished:
    choice = Choice(reason=reason, text="")
    return Finished(request_id=line.id, choices=[choice], usage=Usage(prompt_tokens=1, completion_tokens=1))


def progress_of(*rows: tuple[str, str | None], all_suspects: bool = False) -> ShardProgress:
    progress = ShardProgress(MAX_CRASHES, all_suspects=all_suspects)
    progress.add((line, body, 0) for line, body in rows)
    return progress


def begin(progress: ShardProgress, window: int = 8, *, is_shared: bool = True) -> Line | None:
    """As a shard's run does it."""
    if not progress.may_begin(Window(window)):
        return None
    line = progress.begin()
    if line.parsed is None:
        progress.set_parsed(line, PARSED, is_shared=is_shared)
    return line


def begin_id(progress: ShardProgress, window: int = 8) -> str | None:
    line = begin(progress, window)
    return line.id if line is not None else None


def ids(lines: Any) -> list[str]:
    return [line.id for line in lines]


def test_short_lines_run_many_at_a_time_and_long_ones_two() -> None:
    window = Window(8, characters=10)
    short = progress_of(*((str(number), "x") for number in range(20)))
    long = progress_of(*((str(number), f"{number} a long body") for number in range(20)))
    for progress, most in ((short, 8), (long, 2)):
        while progress.may_begin(window):
            progress.set_parsed(progress.begin(), PARSED, is_shared=False)
        assert len(progress.running) == most


def test_lines_with_the_body_of_the_one_before_follow_it() -> None:
    progress = progress_of(("a", "x"), ("b", None), ("c", None), ("d", "y"), ("e", None))
    assert ids(progress.waiting) == ["a", "d"]
    assert [ids(line.duplicates) for line in progress.waiting] == [["b", "c"], ["e"]]
    progress.check_integrity()


def test_lines_whose_answers_may_differ_run_each_with_the_same_body_and_before_the_others() -> None:
    progress = progress_of(("a", "x"), ("b", None), ("c", None), ("d", "y"))
    assert begin(progress, is_shared=False) is progress.lines["a"]
    assert ids(progress.waiting) == ["b", "c", "d"]
    assert {progress.lines[line].body for line in "abc"} == {"x"}
    assert progress.lines["c"].parsed is PARSED, "their body is parsed once"
    progress.check_integrity()


def test_lines_that_do_not_share_the_answer_of_a_suspect_are_suspects_where_all_are() -> None:
    progress = progress_of(("a", "x"), ("b", None), ("c", "y"), all_suspects=True)
    begin(progress, is_shared=False)
    assert ids(progress.suspects) == ["b", "c"]
    progress.check_integrity()


def test_duplicates_end_with_the_line_they_follow() -> None:
    progress = progress_of(("a", "x"), ("b", None), ("c", "y"))
    line = begin(progress, 1)
    assert line is not None
    assert progress.on_outcome(line, finished(line)) == Record()
    assert [(ended.line.id, ended.is_duplicate) for ended in progress.ended] == [("a", False), ("b", True)]
    progress.check_integrity()
    progress.written(2)
    progress.check_integrity()
    assert set(progress.lines) == {"c"}
    assert begin_id(progress, 1) == "c"


def test_duplicates_are_blocked_with_their_line_after_its_crashes_alone() -> None:
    progress = progress_of(("a", "x"), ("b", None), ("c", None))
    for crash in range(1, MAX_CRASHES + 1):
        line = begin(progress)
        assert line is progress.lines["a"]
        assert begin(progress) is None, "its duplicates never run"
        assert progress.on_outcome(line, lost(line)) == (Block() if crash == MAX_CRASHES else Retry(is_crash=True))
    assert [ended.line.id for ended in progress.ended] == ["a", "b", "c"]
    assert progress.is_over()


def test_a_suspect_is_counted_before_it_runs_and_that_is_taken_back_when_it_was_stopped() -> None:
    progress = progress_of(("a", "x"), ("b", "y"))
    line = begin(progress, 1)
    assert line is not None
    assert progress.unsaved == {}
    assert progress.on_outcome(line, lost(line)) == Retry(is_crash=True)
    assert progress.unsaved == {"a": 1}
    assert begin(progress, 1) is line
    assert progress.unsaved == {"a": 2}
    progress.saved({"a": 1})
    assert progress.unsaved == {"a": 2}, "an older number was saved"
    progress.requeue(line)
    assert progress.unsaved == {"a": 1}


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_line_that_was_cancelled_or_only_waited_in_an_engine_that_ended_is_no_suspect(is_lost: bool) -> None:
    progress = progress_of(("a", "x"))
    line = begin(progress)
    assert line is not None
    outcome = lost(line, was_running=False) if is_lost else finished(line, FinishReason.CANCELLED)
    assert progress.on_outcome(line, outcome) == Retry(is_crash=False)
    assert (ids(progress.waiting), line.crashes, line.is_suspect) == (["a"], 0, False)


def test_a_line_whose_step_failed_as_often_is_recorded_and_not_blocked() -> None:
    """The engine did not end, so other batches may send it again."""
    progress = progress_of(("a", "x"))
    verdicts = []
    while (line := begin(progress)) is not None:
        verdicts.append(progress.on_outcome(line, failed(line, "engine_error")))
    assert verdicts == [Retry(is_crash=True), Retry(is_crash=True), Record()]


def test_a_suspect_that_crashed_alone_goes_on_before_the_others() -> None:
    progress = progress_of(("a", "x"), ("b", "y"))
    a, b = begin(progress, 2), begin(progress, 2)
    assert a is not None
    assert b is not None
    assert [progress.on_outcome(line, lost(line)) for line in (a, b)] == [Retry(is_crash=True)] * 2
    assert begin(progress, 2) is a
    assert progress.on_outcome(a, lost(a)) == Retry(is_crash=True)
    assert begin(progress, 2) is a
    assert progress.on_outcome(a, lost(a)) == Block()
    assert progress.must_write_first
    assert begin(progress, 2) is None, "the result of the first is written before the next suspect begins"
    progress.written(1)
    assert begin(progress, 2) is b
    assert b.crashes == 2, "one in company, and the one that has begun"


def test_lines_are_suspects_by_their_stored_counts_and_all_are_where_workers_vanished() -> None:
    progress = ShardProgress(MAX_CRASHES)
    progress.add([("a", "x", 0), ("b", "y", 3), ("c", "z", 1), ("d", None, 2)])
    assert (ids(progress.waiting), ids(progress.suspects)) == (["a"], ["b", "c", "d"])
    (exhausted,) = progress.take_exhausted()
    assert (exhausted.id, exhausted.state) == ("b", LineState.RUNNING)
    assert progress.on_outcome(exhausted, lost(exhausted)) == Block()
    progress.check_integrity()
    progress = progress_of(("a", "x"), ("b", "y"), all_suspects=True)
    assert ids(progress.suspects) == ["a", "b"]
    progress.check_integrity()


class ProgressMachine(RuleBasedStateMachine):
    """Lines begin, end, stop, crash and are written in any order; each ends once."""

    @initialize(
        rows=st.lists(st.tuples(st.booleans(), st.sampled_from([0, 0, 1, 3])), min_size=8, max_size=8),
        is_shared=st.booleans(),
        all_suspects=st.booleans(),
    )
    def load(self, rows: list[tuple[bool, int]], is_shared: bool, all_suspects: bool) -> None:
        self.progress = ShardProgress(MAX_CRASHES, all_suspects=all_suspects)
        self.progress.add(
            (f"l{n}", None if n and is_same else f"body {n}", crashes) for n, (is_same, crashes) in enumerate(rows)
        )
        self.is_shared = is_shared
        self.num_begun = dict.fromkeys(self.progress.lines, 0)
        self.written: list[str] = []
        self.blocked: set[str] = set()
        for line in self.progress.take_exhausted():
            self.progress.set_parsed(line, PARSED, is_shared=is_shared)
            self.apply(line, lost(line))

    def apply(self, line: Line, outcome: EngineOutcome) -> None:
        duplicates = ids(line.duplicates)
        match self.progress.on_outcome(line, outcome):
            case Retry():
                assert line.state is LineState.WAITING
            case Record():
                assert line.state is LineState.ENDED
            case Block():
                assert line.crashes >= MAX_CRASHES
                assert self.blocked.isdisjoint([line.id, *duplicates]), "blocked once"
                self.blocked.update([line.id, *duplicates])

    def draw_running(self, data: st.DataObject) -> Line:
        return data.draw(st.sampled_from(sorted(self.progress.running, key=lambda line: line.id)))

    @rule()
    def submit(self) -> None:
        line = begin(self.progress, 3, is_shared=self.is_shared)
        if line is not None:
            self.num_begun[line.id] += 1
            assert line.id not in self.written
            assert not line.is_suspect or line.id in self.progress.unsaved, "counted before it runs"
            assert not line.is_suspect or self.progress.running == {line}, "a suspect runs alone"
            assert not line.is_suspect or not self.progress.ended, "results are written before a suspect begins"
            assert len(self.progress.running) <= 3
            assert not line.duplicates or self.is_shared

    @precondition(lambda self: self.progress.running)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        line = self.draw_running(data)
        self.apply(line, finished(line))

    @precondition(lambda self: self.progress.running)
    @rule(data=st.data(), is_lost=st.booleans())
    def stop(self, data: st.DataObject, is_lost: bool) -> None:
        line = self.draw_running(data)
        crashes = line.crashes
        self.apply(line, lost(line, was_running=False) if is_lost else finished(line, FinishReason.CANCELLED))
        assert line.crashes == crashes - line.is_suspect

    @precondition(lambda self: self.progress.running)
    @rule(ends_engine=st.booleans())
    def crash(self, ends_engine: bool) -> None:
        for line in sorted(self.progress.running, key=lambda line: line.id):
            self.apply(line, lost(line) if ends_engine else failed(line, "engine_error"))

    @rule()
    def save(self) -> None:
        self.progress.saved(dict(self.progress.unsaved))

    @precondition(lambda self: self.progress.ended)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.progress.ended)))
        self.written += [ended.line.id for ended in list(self.progress.ended)[:count]]
        self.progress.written(count)

    @rule(is_stopping=st.sampled_from([True, *[False] * 9]))
    def leave(self, is_stopping: bool) -> None:
        """The worker may have to leave: what runs may end, nothing begins."""
        self.progress.is_stopping |= is_stopping

    @invariant()
    def each_line_is_in_one_place(self) -> None:
        self.progress.check_integrity()
        ended = [*self.written, *(one.line.id for one in self.progress.ended)]
        assert len(set(ended)) == len(ended)
        assert set(ended).isdisjoint(line.id for line in self.progress.running)
        assert not any(self.num_begun[one.line.id] for one in self.progress.ended if one.is_duplicate)
        if self.progress.is_over() and not self.progress.is_stopping:
            assert len(ended) == 8


TestProgress = ProgressMachine.TestCase
TestProgress.settings = settings(max_examples=100, deadline=None)
