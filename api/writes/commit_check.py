"""What became of a transaction that failed: one whose reply got lost may have been committed, so it is asked first.

What it was to make has an id that is known beforehand. That it is not there yet proves nothing: a commit that was sent may still
be on its way. So bytes stay in the store unless their row was refused; those that nobody names are swept within hours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from api.dependencies import AppState
from core.errors import ApiError
from db.connections import is_transient

log = structlog.get_logger()

_Made = TypeVar("_Made")


async def create_or_find(make: Callable[[], Awaitable[_Made]], find: Callable[[], Awaitable[_Made | None]]) -> _Made:
    """Make something; where the database fails at it, see whether it is there all the same. Else its error is raised."""
    try:
        return await make()
    except SQLAlchemyError as error:
        if not is_transient(error):
            raise
        found = await find()
        if found is None:
            raise
        log.info("found_after_all", reason=type(error).__name__)
        return found


async def make_with_file(
    state: AppState,
    file_id: str,
    make: Callable[[], Awaitable[_Made]],
    find: Callable[[], Awaitable[_Made | None]],
) -> _Made:
    """Make what names a file whose bytes are in the store; they go when it is refused."""
    try:
        return await create_or_find(make, find)
    except ApiError:
        state.files.delete(file_id)
        raise
