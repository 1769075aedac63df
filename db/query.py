"""Query: a statement together with the class of its rows, so that rows leave this package as named, typed values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import BigInteger, Cast, Connection, CursorResult, Executable, cast, func
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstrumentedAttribute

from db.tables import Base

RowT = TypeVar("RowT", bound=NamedTuple)
_Result = CursorResult[*tuple[Any, ...]]  # Any: any columns


@dataclass(frozen=True, slots=True)
class _Rows(ABC, Generic[RowT]):
    """A statement whose rows are named tuples of a class, which has its columns as fields, in the same order."""

    @property
    @abstractmethod
    def _row_class(self) -> type[RowT]: ...

    @abstractmethod
    def _execute(self, connection: Connection) -> _Result: ...

    @abstractmethod
    async def _async_execute(self, connection: AsyncConnection) -> _Result: ...

    def fetch_one(self, connection: Connection) -> RowT:
        """The only row; raises NoResultFound when there is none."""
        return self._row_class._make(self._checked(self._execute(connection)).one())

    def fetch_optional(self, connection: Connection) -> RowT | None:
        """The only row, or None."""
        row = self._checked(self._execute(connection)).one_or_none()
        return None if row is None else self._row_class._make(row)

    def fetch_all(self, connection: Connection) -> list[RowT]:
        """All rows."""
        return list(map(self._row_class._make, self._checked(self._execute(connection))))

    async def async_fetch_one(self, connection: AsyncConnection) -> RowT:
        """`fetch_one` on an event loop."""
        return self._row_class._make(self._checked(await self._async_execute(connection)).one())

    async def async_fetch_optional(self, connection: AsyncConnection) -> RowT | None:
        """`fetch_optional` on an event loop."""
        row = self._checked(await self._async_execute(connection)).one_or_none()
        return None if row is None else self._row_class._make(row)

    async def async_fetch_all(self, connection: AsyncConnection) -> list[RowT]:
        """`fetch_all` on an event loop."""
        return list(map(self._row_class._make, self._checked(await self._async_execute(connection))))

    def _checked(self, result: _Result) -> _Result:
        fields = self._row_class._fields
        assert tuple(result.keys()) == fields, f"{self._row_class.__name__}: {list(result.keys())}"
        return result


@dataclass(frozen=True, slots=True)
class Query(_Rows[RowT]):
    """A statement of several columns, and the class of its rows.

    Statements of one column are typed by SQLAlchemy and need no Query. `parameters` are the values of a statement that is made
    once: to make one of a hundred expressions again for each call takes longer than the database needs for it.
    """

    statement: Executable
    row_class: type[RowT]
    parameters: Mapping[str, object] | None = None

    @property
    def _row_class(self) -> type[RowT]:
        return self.row_class

    def _execute(self, connection: Connection) -> _Result:
        return connection.execute(self.statement, self.parameters)

    async def _async_execute(self, connection: AsyncConnection) -> _Result:
        return await connection.execute(self.statement, self.parameters)


@dataclass(frozen=True, slots=True)
class DriverQuery(_Rows[RowT]):
    """A statement in the words of the driver, with `%(name)s` for a parameter, whose values SQLAlchemy does not convert.

    It takes half the time of a Query: for statements that the first token of a chat waits for.
    """

    sql: str
    row_class: type[RowT]
    parameters: dict[str, object]

    @property
    def _row_class(self) -> type[RowT]:
        return self.row_class

    def _execute(self, connection: Connection) -> _Result:
        return connection.exec_driver_sql(self.sql, self.parameters)

    async def _async_execute(self, connection: AsyncConnection) -> _Result:
        return await connection.exec_driver_sql(self.sql, self.parameters)


def columns_of(
    table: type[Base], row_class: type[NamedTuple]
) -> tuple[InstrumentedAttribute[Any], ...]:  # Any: the columns' own types
    """The columns of a table that a row class names."""
    return tuple(getattr(table, name) for name in row_class._fields)


def total(column: Any) -> Cast[int]:  # Any: a column of numbers, or an expression of them
    """The sum of a column as an integer, 0 without rows; Postgres itself makes a numeric of a sum of bigints."""
    return cast(func.coalesce(func.sum(column), 0), BigInteger)
