"""Celery pool: the loop is woken when a thread is free, neither before nor a second later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from workers.consumers.celery_pool import Pool


class Loop:
    """Records the state at each wake-up."""

    def __init__(self, look: Callable[[], object]) -> None:
        self._look = look
        self.saw: list[object] = []
        self.woken = threading.Event()

    def call_soon(self, callback: Callable[[], None]) -> None:
        callback()
        self.saw.append(self._look())
        self.woken.set()


def fail() -> None:
    raise KeyError


@pytest.mark.parametrize("task", [lambda: None, fail])
def test_the_loop_is_woken_after_celery_has_dropped_a_task(task: Callable[[], None]) -> None:
    forgotten: list[Any] = []
    pool, loop = Pool(limit=1), Loop(lambda: list(forgotten))
    pool.register_with_event_loop(loop)
    pool.start()
    pool.apply_async(task, callback=forgotten.append)
    assert loop.woken.wait(20)
    assert loop.saw == [[] if task is fail else [None]]
    pool.stop()


def test_a_pool_without_a_loop_works() -> None:
    pool, ended = Pool(limit=1), threading.Event()
    pool.start()
    pool.apply_async(ended.set)
    assert ended.wait(20)
    pool.stop()
