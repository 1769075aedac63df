"""A key that is revoked ends what is read with it: streams, and requests that wait. Batches of the key finish.

Every other call asks for its key by itself, see `api.services.key_ring`; these asked when they began, perhaps an hour ago.
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

_SHORTEST_SECONDS: Final = 0.5


async def close_revoked_streams(readers: Waiters, database: AsyncEngine, pause_seconds: float) -> None:
    """For as long as the process lives: look whether the keys that are waited with are still valid."""
    while True:
        await asyncio.sleep(max(pause_seconds, _SHORTEST_SECONDS))
        try:
            await _look(readers, database)
        except Exception as error:  # the database may be away; whatever it is, this must be looked at again
            log.warning("keys_not_looked_at", reason=type(error).__name__)


async def _look(readers: Waiters, database: AsyncEngine) -> None:
    held = readers.key_ids()
    if not held:
        return
    async with database.connect() as connection:
        valid = set((await connection.execute(keys.still_valid(held))).scalars())
    readers.end(not_valid().problem, held - valid)
