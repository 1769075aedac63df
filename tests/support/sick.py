"""A database that fails on request: before anything is done, at the commit, or once it is committed and the reply gets lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from core.failpoints import Point
from workers.context import Database


def no_reply() -> OperationalError:
    return OperationalError("COMMIT", None, Exception("the connection was reset"))


class SickDatabase(Database):
    """Of the next transactions, and uses of `autocommit`, `refused` many fail, then `unheard` many commit and fail.

    `uncommitted` many of the next transactions are rolled back instead of committed.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database.engine)
        self.refused = 0
        self.unheard = 0
        self.uncommitted = 0
        self.on_use: Callable[[], None] = lambda: None

    @contextmanager
    def begin(self, *, committing: Point | None = None, committed: Point | None = None) -> Iterator[Connection]:
        with self._sick(), super().begin(committing=committing, committed=committed) as connection:
            yield connection
            if self.uncommitted:
                self.uncommitted -= 1
                raise no_reply()

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        with self._sick(), super().autocommit() as connection:
            yield connection

    @contextmanager
    def _sick(self) -> Iterator[None]:
        self.on_use()
        if self.refused:
            self.refused -= 1
            raise no_reply()
        yield
        if self.unheard:
            self.unheard -= 1
            raise no_reply()
