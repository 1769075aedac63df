"""Executor that runs work of one key once at a time."""

from __future__ import annotations

import threading

from tests.support.stack import wait_for
from workers.consumers.dedup_executor import DedupExecutor


def test_work_that_waits_or_runs_is_not_begun_again() -> None:
    unbidden, may_end, begun = DedupExecutor(1, "test"), threading.Event(), []

    def work(name: str) -> None:
        begun.append(name)
        assert may_end.wait(20)

    for _ in range(3):
        for name in ("a", "b"):
            unbidden.begin(name, lambda name=name: work(name))  # type: ignore[misc]
    wait_for(lambda: begun == ["a"], "the first runs")
    may_end.set()
    wait_for(unbidden.is_idle, "all is done")
    assert begun == ["a", "b"]


def test_work_that_fails_may_be_begun_again_and_nothing_is_after_the_close() -> None:
    unbidden, begun = DedupExecutor(1, "test"), []

    def work() -> None:
        begun.append(1)
        raise RuntimeError

    for _ in range(2):
        unbidden.begin("a", work)
        wait_for(unbidden.is_idle, "it has failed")
    unbidden.close()
    unbidden.begin("a", work)
    assert len(begun) == 2
    assert unbidden.is_idle()
