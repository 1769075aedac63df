"""Waiters: requests and streams that wait for events, and that shutdown or a revoked key can end.

Thousands are idle at a time, so a waiter is a few words of memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from core.errors import Problem


class WaitEnded(Exception):
    """The wait was ended by this process; `problem` is the reason to send to the client."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Waiter:
    """One wait, begun with this API key; None where no key is needed."""

    def __init__(self, key_id: str | None) -> None:
        self.key_id = key_id
        self._problem: Problem | None = None
        self._wakeup: asyncio.Future[None] | None = None

    async def wait(self, timeout_seconds: float) -> None:
        """Return on the next `wake`; raises TimeoutError and WaitEnded."""
        self.check()
        self._wakeup = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(timeout_seconds):
            await self._wakeup
        self.check()

    def check(self) -> None:
        """Raise WaitEnded after `end`."""
        if self._problem is not None:
            raise WaitEnded(self._problem)

    def wake(self) -> None:
        """Let `wait` return."""
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def end(self, problem: Problem) -> None:
        """Let this and every later `wait` raise WaitEnded."""
        self._problem = problem
        self.wake()


class Waiters:
    """All waiters of a process."""

    def __init__(self) -> None:
        self._open: set[Waiter] = set()
        self._problem: Problem | None = None

    def add(self, waiter: Waiter) -> None:
        """Register a waiter; after `end_all` it is ended at once."""
        self._open.add(waiter)
        if self._problem is not None:
            waiter.end(self._problem)

    def remove(self, waiter: Waiter) -> None:
        """Forget a waiter."""
        self._open.discard(waiter)

    @contextmanager
    def open(self, key_id: str | None) -> Iterator[Waiter]:
        """A registered waiter for the duration of the block."""
        waiter = Waiter(key_id)
        self.add(waiter)
        try:
            yield waiter
        finally:
            self.remove(waiter)

    def key_ids(self) -> set[str]:
        """The keys of all open waiters."""
        return {waiter.key_id for waiter in self._open if waiter.key_id is not None}

    def end(self, problem: Problem, key_ids: Collection[str]) -> None:
        """End the waiters of these keys."""
        for waiter in [waiter for waiter in self._open if waiter.key_id in key_ids]:
            waiter.end(problem)

    def end_all(self, problem: Problem) -> None:
        """End all open waiters and all that are added later."""
        self._problem = problem
        for waiter in [*self._open]:
            waiter.end(problem)
