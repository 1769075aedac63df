"""Quotas: limit the bytes that a tenant keeps in files and in parts of pending uploads.

A quota is checked twice: before the bytes are copied, so that a full tenant costs little, and in the transaction that inserts
their row, which decides.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from api.services.rate_limiter import too_many
from core.errors import ApiError, Problem
from core.settings import Settings
from db import files, keys, uploads

_NO_RETRY: Final = {"x-should-retry": "false"}  # waiting frees nothing


async def check_storage(
    connection: AsyncConnection, settings: Settings, tenant: str, num_bytes: int, *, param: str
) -> None:
    """Reserve room for a file until the transaction ends, or raise the 429 of a quota that is used up.

    An upload in parts reserves its whole size when it is created, and keeps it as a file.
    """
    statement = files.stored_bytes(tenant, settings.storage_bytes or None)
    cap = (await statement.async_fetch_one(connection)).limit_bytes
    if cap is None:
        return
    await connection.execute(keys.lock_quota(f"{tenant}:files"))
    used = (await statement.async_fetch_one(connection)).used_bytes
    if used + num_bytes > cap:
        raise _no_storage(cap, used, num_bytes, param)


async def check_pending(connection: AsyncConnection, settings: Settings, tenant: str, num_bytes: int) -> None:
    """Reserve room for another part of a pending upload until the transaction ends, or raise the 429."""
    limit = settings.pending_upload_bytes
    await connection.execute(keys.lock_quota(f"{tenant}:parts"))
    used = (await connection.execute(uploads.pending_bytes(tenant))).scalar_one()
    if used + num_bytes > limit:
        message = (
            f"Too many bytes in uploads that are not completed: limit {limit}, used {used}, requested {num_bytes}. Complete "
            f"or cancel some; one that is left alone expires {settings.upload_seconds:g} seconds after it began."
        )
        raise too_many("uploads", message, 0, is_worth_a_retry=False)


def _no_storage(cap: int, used: int, num_bytes: int, param: str) -> ApiError:
    message = (
        f"You exceeded your storage quota: limit {cap} bytes, used {used}, requested {num_bytes}. Delete files you no longer "
        "need, or ask the operator of this server for more."
    )
    kind = "insufficient_quota"
    return ApiError(Problem(status=429, message=message, type=kind, code=kind, param=param), _NO_RETRY)
