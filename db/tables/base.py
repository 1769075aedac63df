"""The base of all tables: naming of constraints, and column types.

Bodies and answers are stored as text: jsonb drops the order of keys and refuses some of what a model may write. Every row
names its tenant. `jobs` has a foreign key to its batch only: keys to tenants and shards would cost two more look-ups per
copied line.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import DateTime, MetaData, Text
from sqlalchemy.orm import DeclarativeBase

from core.states import BatchState, JobState, ShardState

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Text columns and timestamps with a zone, everywhere."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: Final[dict[Any, Any]] = {  # Any: SQLAlchemy's own signature
        str: Text(),
        datetime: DateTime(timezone=True),
        JobState: Text(),
        BatchState: Text(),
        ShardState: Text(),
    }


def one_of(column: str, values: type[JobState] | type[BatchState] | type[ShardState] | tuple[str, ...]) -> str:
    """A CHECK that a column holds one of these values."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"
