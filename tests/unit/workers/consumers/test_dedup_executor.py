"""Executor that runs work of one key once at a time."""

from __future__ import annotations

import threading

from tests.support.stack import wait_for
from workers.consumers.dedup_executor import DedupExecutor


def test_work_that_is_pending_is_not_started_again() -> None:
    executor, may_end, started = DedupExecutor(1, "test"), threading.Event(), []

    def work(name: str) -> None:
        started.append(name)
        assert may_end.wait(20)

    for _ in range(3):
        for name in ("a", "b"):
            executor.submit(name, lambda name=name: work(name))  # type: ignore[misc]
    wait_for(lambda: started == ["a"], "the first runs")
    may_end.set()
    wait_for(executor.is_idle, "all is done")
    assert started == ["a", "b"]


def test_failed_work_may_be_submitted_again_but_nothing_after_close() -> None:
    executor, started = DedupExecutor(1, "test"), []

    def work() -> None:
        started.append(1)
        raise RuntimeError

    for _ in range(2):
        executor.submit("a", work)
        wait_for(executor.is_idle, "it has failed")
    executor.close()
    executor.submit("a", work)
    assert len(started) == 2
    assert executor.is_idle()
