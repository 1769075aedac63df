"""Query: a statement together with the class of its rows, so that rows leave this package as named, typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import BigInteger, Cast, Connection, CursorResult, Executable, cast, func
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstrumentedAttribute

from db.tables import Base

RowT = TypeVar("RowT", bound=NamedTuple)


@dataclass(frozen=True, slots=True)
class Query(Generic[RowT]):
    """A statement of several columns, and the named tuple that has those columns as fields, in the same order.

    Statements of one column are typed by SQLAlchemy and need no Query. `parameters` are the values of a statement that is made
    once: to make one of a hundred expressions again for each call takes longer than the database needs for it.
    """

    statement: Executable
    row_class: type[RowT]
    parameters: Mapping[str, object] | None = None

    def fetch_one(self, connection: Connection) -> RowT:
        """The only row; raises NoResultFound when there is none."""
        return self.row_class._make(self._checked(connection.execute(self.statement, self.parameters)).one())

    def fetch_optional(self, connection: Connection) -> RowT | None:
        """The only row, or None."""
        row = self._checked(connection.execute(self.statement, self.parameters)).one_or_none()
        return None if row is None else self.row_class._make(row)

    def fetch_all(self, connection: Connection) -> list[RowT]:
        """All rows."""
        return list(map(self.row_class._make, self._checked(connection.execute(self.statement, self.parameters))))

    async def async_fetch_one(self, connection: AsyncConnection) -> RowT:
        """`fetch_one` on an event loop."""
        return self.row_class._make(self._checked(await connection.execute(self.statement, self.parameters)).one())

    async def async_fetch_optional(self, connection: AsyncConnection) -> RowT | None:
        """`fetch_optional` on an event loop."""
        row = self._checked(await connection.execute(self.statement, self.parameters)).one_or_none()
        return None if row is None else self.row_class._make(row)

    async def async_fetch_all(self, connection: AsyncConnection) -> list[RowT]:
        """`fetch_all` on an event loop."""
        return list(map(self.row_class._make, self._checked(await connection.execute(self.statement, self.parameters))))

    def _checked(self, result: CursorResult[*tuple[Any, ...]]) -> CursorResult[*tuple[Any, ...]]:  # Any: any columns
        assert tuple(result.keys()) == self.row_class._fields, f"{self.row_class.__name__}: {list(result.keys())}"
        return result


def columns_of(
    table: type[Base], row_class: type[NamedTuple]
) -> tuple[InstrumentedAttribute[Any], ...]:  # Any: the columns' own types
    """The columns of a table that a row class names."""
    return tuple(getattr(table, name) for name in row_class._fields)


def total(column: Any) -> Cast[int]:  # Any: a column of numbers, or an expression of them
    """The sum of a column as an integer, 0 without rows; Postgres itself makes a numeric of a sum of bigints."""
    return cast(func.coalesce(func.sum(column), 0), BigInteger)
