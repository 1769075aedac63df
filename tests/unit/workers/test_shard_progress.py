"""The bookkeeping of a shard: each line ends once, whatever is answered, stopped or crashed in which order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.process.client import EngineLost
from workers.shards.shard_progress import ShardProgress

MOST_CRASHES = 3


def lost(line: str) -> EngineLost:
    return EngineLost(request_id=line)


def progress_of(*rows: tuple[str, str | None], shared: bool = True) -> ShardProgress:
    progress = ShardProgress()
    progress.add(((line, body, 0) for line, body in rows), lambda body: shared)
    return progress


def test_lines_with_the_body_of_the_one_before_follow_it() -> None:
    progress = progress_of(("a", "x"), ("b", None), ("c", None), ("d", "y"), ("e", None))
    assert list(progress.waiting) == ["a", "d"]
    assert progress.duplicates == {"a": ["b", "c"], "d": ["e"]}
    progress.check_integrity()


def test_lines_whose_answers_may_differ_run_each_with_the_same_body() -> None:
    progress = progress_of(("a", "x"), ("b", None), ("c", None), shared=False)
    assert list(progress.waiting) == ["a", "b", "c"]
    assert progress.bodies == {"a": "x", "b": "x", "c": "x"}
    progress.check_integrity()


def test_a_body_is_looked_at_only_where_lines_share_it() -> None:
    asked: list[str] = []
    rows = [("a", "x", 0), ("b", "y", 0), ("c", None, 0), ("d", None, 0), ("e", "z", 0)]
    ShardProgress().add(rows, lambda body: not asked.append(body))
    assert asked == ["y"]


def test_twins_end_with_the_line_they_follow() -> None:
    progress = progress_of(("a", "x"), ("b", None), ("c", "y"))
    assert progress.begin(1) == "a"
    progress.end("a", lost("a"))
    assert [(ended.line, ended.is_twin) for ended in progress.ended] == [("a", False), ("b", True)]
    progress.check_integrity()
    progress.written(2)
    progress.check_integrity()
    assert progress.begin(1) == "c"


def test_twins_are_convicted_with_their_line_after_its_crashes_alone() -> None:
    progress = progress_of(("a", "x"), ("b", None), ("c", None))
    for crash in range(1, MOST_CRASHES + 1):
        assert progress.begin(8) == "a"
        assert progress.begin(8) is None, "its twins never run"
        assert progress.crashed("a", MOST_CRASHES) == (crash == MOST_CRASHES)
    progress.end("a", lost("a"))
    assert [ended.line for ended in progress.ended] == ["a", "b", "c"]
    assert progress.is_over()


def test_a_suspect_is_counted_before_it_runs_and_that_is_taken_back_when_it_was_stopped() -> None:
    progress = progress_of(("a", "x"), ("b", "y"))
    assert progress.begin(1) == "a"
    assert progress.unsaved == {}
    assert not progress.crashed("a", MOST_CRASHES)
    assert progress.unsaved == {"a": 1}
    assert progress.begin(1) == "a"
    assert progress.unsaved == {"a": 2}
    progress.saved({"a": 1})
    assert progress.unsaved == {"a": 2}, "an older number was saved"
    progress.give_back("a")
    assert progress.unsaved == {"a": 1}


def test_a_suspect_that_crashed_alone_goes_on_before_the_others() -> None:
    progress = progress_of(("a", "x"), ("b", "y"))
    assert [progress.begin(2), progress.begin(2)] == ["a", "b"]
    assert not any(progress.crashed(line, MOST_CRASHES) for line in "ab")
    assert progress.begin(2) == "a"
    assert not progress.crashed("a", MOST_CRASHES)
    assert progress.begin(2) == "a"
    assert progress.crashed("a", MOST_CRASHES)
    progress.end("a", lost("a"))
    assert progress.begin(2) == "b"
    assert progress.crashes["b"] == 2, "one in company, and the one that has begun"


def test_lines_are_suspects_for_what_the_database_says_and_all_are_where_workers_vanished() -> None:
    progress = ShardProgress()
    progress.add([("a", "x", 0), ("b", "y", 3), ("c", "z", 1)], lambda _: False)
    assert (list(progress.waiting), list(progress.suspects)) == (["a"], ["b", "c"])
    assert progress.convicted(MOST_CRASHES) == ["b"]
    assert progress.running == {"b"}
    progress = ShardProgress()
    progress.add([("a", "x", 0), ("b", "y", 1)], lambda _: False, all_are_suspects=True)
    assert list(progress.suspects) == ["a", "b"]
    progress.check_integrity()


class ProgressMachine(RuleBasedStateMachine):
    """Lines are submitted, answered, stopped, crashed and written in any order; each ends once, or is convicted once."""

    @initialize(is_twin=st.lists(st.booleans(), min_size=8, max_size=8), is_shared=st.booleans())
    def load(self, is_twin: list[bool], is_shared: bool) -> None:
        rows = [(f"l{n}", None if n and twin else f"body {n}") for n, twin in enumerate(is_twin)]
        self.progress = progress_of(*rows, shared=is_shared)
        self.written: list[str] = []

    @rule()
    def submit(self) -> None:
        line = self.progress.begin(3)
        if line is not None:
            assert line not in self.written
            assert line not in self.progress.crashes or line in self.progress.unsaved, "counted before it runs"
            is_suspect = line in self.progress.crashes
            assert not is_suspect or self.progress.running == {line}, "a suspect runs alone"
            assert len(self.progress.running) <= 3

    @precondition(lambda self: self.progress.running)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        line = data.draw(st.sampled_from(sorted(self.progress.running)))
        self.progress.end(line, lost(line))

    @precondition(lambda self: self.progress.running)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        self.progress.give_back(data.draw(st.sampled_from(sorted(self.progress.running))))

    @precondition(lambda self: self.progress.running)
    @rule()
    def crash(self) -> None:
        for line in sorted(self.progress.running):
            if self.progress.crashed(line, MOST_CRASHES):
                self.progress.end(line, lost(line))

    @rule()
    def save(self) -> None:
        self.progress.saved(dict(self.progress.unsaved))

    @precondition(lambda self: self.progress.ended)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.progress.ended)))
        self.written += [ended.line for ended in list(self.progress.ended)[:count]]
        self.progress.written(count)

    @invariant()
    def each_line_is_in_one_place(self) -> None:
        self.progress.check_integrity()
        ended = [*self.written, *(one.line for one in self.progress.ended)]
        assert len(set(ended)) == len(ended)
        if self.progress.is_over():
            assert len(ended) == 8


TestProgress = ProgressMachine.TestCase
TestProgress.settings = settings(max_examples=60, deadline=None)
