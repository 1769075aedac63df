"""A check after each file of tests that no thread goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Final

import pytest

_SECONDS: Final = 20.0
_EVERLASTING: Final = "tqdm_monitor"  # of a library; it only looks at progress bars


@pytest.fixture(scope="module", autouse=True)
def no_thread_goes_on() -> Iterator[None]:
    """Wait for the threads of a file's tests: one that goes on changes `random` and logs in the tests of other files."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + _SECONDS
    begun = [each for each in threading.enumerate() if each not in before and each.name != _EVERLASTING]
    for thread in begun:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert [thread.name for thread in begun if thread.is_alive()] == [], "they go on after the tests of this file"
