"""A database that fails when it is told to: before anything is done, or once it is done and nobody hears of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from workers.context import Database


def no_reply() -> OperationalError:
    return OperationalError("COMMIT", None, Exception("the connection was reset"))


class SickDatabase(Database):
    """Of the next transactions, so many are `refused`, then so many are `unheard`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.engine)
        self.refused = 0
        self.unheard = 0

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        if self.refused:
            self.refused -= 1
            raise no_reply()
        with super().begin() as connection:
            yield connection
        if self.unheard:
            self.unheard -= 1
            raise no_reply()
