"""The base of all tables: names of constraints, and column types.

Bodies and answers are stored as text: jsonb drops the order of keys and refuses some of what a model may write. Every row
names its tenant. `jobs` has a foreign key to its batch only: keys to tenants and shards would cost two more look-ups per
copied line.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import CheckConstraint, DateTime, Dialect, MetaData, Text, TypeDecorator, true
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core.states import BatchState, EngineState, JobState, ShardState

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class State(TypeDecorator[StrEnum]):
    """A text column that holds the values of an enumeration, and is read as its members."""

    impl = Text
    cache_ok = True

    def __init__(self, enum: type[StrEnum]) -> None:
        super().__init__()
        self.enum = enum

    def process_result_value(self, value: str | None, _: Dialect) -> StrEnum | None:
        return None if value is None else self.enum(value)


class Base(DeclarativeBase):
    """Text columns and timestamps with a zone, everywhere."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: Final[dict[Any, Any]] = {  # Any: SQLAlchemy's own signature
        str: Text(),
        datetime: DateTime(timezone=True),
        JobState: State(JobState),
        BatchState: State(BatchState),
        ShardState: State(ShardState),
        EngineState: State(EngineState),
    }


class SchemaCompatibility(Base):
    """One row: the needed version of the oldest code that may run on this database; only migrations write it."""

    __tablename__ = "schema_compatibility"
    is_only: Mapped[bool] = mapped_column(primary_key=True, server_default=true())
    oldest_code: Mapped[str]

    __table_args__ = (CheckConstraint("is_only", name="is_only"),)


def one_of(column: str, values: type[StrEnum] | tuple[str, ...]) -> str:
    """Return a CHECK that a column holds one of these values."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"
