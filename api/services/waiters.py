"""Who waits for something to happen, and how that is ended from our side: this process leaves, or a key is revoked.

Knows keys by their id, and problems; not what is waited for. Readers are idle in their thousands, so one is a few words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from core.errors import Problem


class WaitEnded(Exception):
    """Nothing more is said to this reader, and `problem` is why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Waiter:
    """Somebody who came with a key, or None where none is needed."""

    def __init__(self, key_id: str | None) -> None:
        self.key_id = key_id
        self._problem: Problem | None = None
        self._woken: asyncio.Future[None] | None = None

    async def wait(self, timeout_seconds: float) -> None:
        """Until it is woken; raises TimeoutError, or ToldToEnd."""
        self.check()
        self._woken = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(timeout_seconds):
            await self._woken
        self.check()

    def check(self) -> None:
        """Raises ToldToEnd once it was told to."""
        if self._problem is not None:
            raise WaitEnded(self._problem)

    def wake(self) -> None:
        """Something has happened."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def end(self, problem: Problem) -> None:
        """Whatever it waits for."""
        self._problem = problem
        self.wake()


class Waiters:
    """All of a process."""

    def __init__(self) -> None:
        self._open: set[Waiter] = set()
        self._problem: Problem | None = None

    def add(self, reader: Waiter) -> None:
        """One that comes behind the end is told at once."""
        self._open.add(reader)
        if self._problem is not None:
            reader.end(self._problem)

    def remove(self, reader: Waiter) -> None:
        """It has gone."""
        self._open.discard(reader)

    @contextmanager
    def open(self, key_id: str | None) -> Iterator[Waiter]:
        """One more, for the block."""
        reader = Waiter(key_id)
        self.add(reader)
        try:
            yield reader
        finally:
            self.remove(reader)

    def key_ids(self) -> set[str]:
        """The keys that are waited with."""
        return {reader.key_id for reader in self._open if reader.key_id is not None}

    def end(self, problem: Problem, key_ids: Collection[str]) -> None:
        """Those with one of these keys."""
        for reader in [reader for reader in self._open if reader.key_id in key_ids]:
            reader.end(problem)

    def end_all(self, problem: Problem) -> None:
        """Those that are here, and those that come."""
        self._problem = problem
        for reader in [*self._open]:
            reader.end(problem)
