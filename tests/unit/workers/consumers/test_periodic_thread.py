"""Thread that calls an action again and again."""

from __future__ import annotations

import threading

from workers.consumers.base import PeriodicThread


def test_an_unexpected_error_does_not_end_the_thread() -> None:
    has_run_again, num_calls = threading.Event(), 0

    def action() -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            raise RuntimeError("an unexpected error")
        has_run_again.set()

    thread = PeriodicThread(0.0, action, "test")
    thread.start()
    assert has_run_again.wait(20)
    thread.close()
    thread.join(20)
    assert not thread.is_alive()
