"""End the open streams and waiting requests of a revoked API key; batches of the key finish.

Every other request checks its key when it arrives; these did so when they began, perhaps an hour ago.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from api.services.key_ring import not_valid
from api.services.waiters import Waiters
from db import keys

log = structlog.get_logger()

_MIN_PAUSE_SECONDS: Final = 0.5


async def close_revoked_streams(waiters: Waiters, database: AsyncEngine, pause_seconds: float) -> None:
    """Check the keys of all waiters every `pause_seconds`, for as long as the process lives."""
    while True:
        await asyncio.sleep(max(pause_seconds, _MIN_PAUSE_SECONDS))
        try:
            await _close_revoked(waiters, database)
        except Exception as error:  # the edge of this task: the database may be down, the next round checks again
            log.warning("key_check_failed", reason=type(error).__name__)


async def _close_revoked(waiters: Waiters, database: AsyncEngine) -> None:
    key_ids = waiters.key_ids()
    if not key_ids:
        return
    async with database.connect() as connection:
        valid = set((await connection.execute(keys.still_valid(key_ids))).scalars())
    waiters.end(not_valid().problem, key_ids - valid)
