"""A commit that failed may have happened all the same: look the object up by its id before reporting the error.

The id is chosen before the transaction begins. A commit may still be on its way, so an object is looked up a few times. One that
is not found may appear even later: bytes stay in the store unless their row was refused, and the sweeper deletes bytes without a
row within hours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio.to_thread
import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.errors import ApiError
from core.files.file_store import FileStore
from db.connections import is_transient

log = structlog.get_logger()

_Object = TypeVar("_Object")
_PAUSES: Final = (0.0, 0.05, 0.2, 0.5)  # seconds before each look-up


async def create_or_find(
    create: Callable[[], Awaitable[_Object]], find: Callable[[], Awaitable[_Object | None]]
) -> _Object:
    """Create an object; after a transient database error return it if it exists, else raise the error."""
    try:
        return await create()
    except SQLAlchemyError as error:
        if not is_transient(error):
            raise
        for pause in _PAUSES:
            await asyncio.sleep(pause)
            if (found := await find()) is not None:
                log.info("commit_confirmed", reason=type(error).__name__)
                return found
        raise


async def create_with_file(
    files: FileStore,
    file_id: str,
    create: Callable[[], Awaitable[_Object]],
    find: Callable[[], Awaitable[_Object | None]],
) -> _Object:
    """Create an object that names a file whose bytes are in the store; delete the bytes when the object is refused."""
    try:
        return await create_or_find(create, find)
    except ApiError:
        await anyio.to_thread.run_sync(files.delete, file_id)
        raise
