"""`/v1/api_keys`: the keys of the caller's tenant. A secret is in the response that creates its key, and nowhere else."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Query, Request
from sqlalchemy.ext.asyncio import AsyncConnection

from api.access.key_grants import check_covers, end_of, grant
from api.access.scopes import require_scopes
from api.dependencies import CallerDep, DatabaseDep, KeyRingDep, SettingsDep, TenantDep
from api.http.json_body import JsonBody, OptionalJsonBody
from api.http.local_only import check_first_key
from api.http.pagination import check_cursor, page, unix_seconds
from api.schemas.api_keys import ApiKeyCreate, ApiKeyObject, ApiKeyRotate, ApiKeyWithSecret
from api.services.key_ring import Caller, not_valid
from api.writes.idempotency import CreateOnceDep
from core.api_keys import KEY, KeyLimits, NewKey, Scope, new_key
from core.errors import ApiError, bad_request, not_found
from core.ids import is_id
from core.schemas.objects import ListObject
from db import keys
from db.keys import KeyRow

log = structlog.get_logger()
router = APIRouter(tags=["keys"], dependencies=[require_scopes(Scope.ADMIN)])

_MAX_KEYS: Final = 1000
_RESTRICTIONS: Final = ("models", *(each.name for each in fields(KeyLimits)), "expires_after_seconds")
_KEYS_REQUIRED: Final = (
    "Every request to this server now needs a key. Keep this one: it is shown once, and it is the only one that can create "
    "others here."
)


@router.post("/v1/api_keys")
async def create_key(
    request: Request,
    body: JsonBody[ApiKeyCreate],
    database: DatabaseDep,
    settings: SettingsDep,
    key_ring: KeyRingDep,
    tenant: TenantDep,
    caller: CallerDep,
    create_once: CreateOnceDep,
) -> ApiKeyWithSecret:
    """Create a key with at most the rights of the caller. The first key must be an admin's: then every request needs one."""
    is_first = caller.key_id is None
    if is_first:
        check_first_key(request)
        _check_first(body)
    columns = {
        "tenant_id": tenant,
        "name": body.name,
        "scopes": [str(scope) for scope in body.scopes],
        "expires_at": end_of(caller, _moment(body.expires_after_seconds)),
        **grant(caller, settings, models=body.models, limits=body.limits()),
    }
    made = new_key()
    warning = _KEYS_REQUIRED if is_first else None

    async def create(key_id: str) -> ApiKeyWithSecret:
        async with database.begin() as connection:
            await _check_current(connection, caller)
            await _check_room(connection, tenant)
            row = await keys.create_key(key_id, made, **columns).async_fetch_one(connection)
        return _with_secret(row, made, warning)

    async def find(key_id: str) -> ApiKeyWithSecret:
        async with database.connect() as connection:
            return _with_secret(await _find(connection, key_id, tenant), made, warning)

    created = await create_once(KEY, find=find, create=create)
    key_ring.require_keys()
    log.info("api_key_created", key=created.id, by=caller.key_id)
    return created


@router.get("/v1/api_keys")
async def list_keys(
    database: DatabaseDep,
    tenant: TenantDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListObject[ApiKeyObject]:
    """Newest first, also those that were revoked or have expired."""
    check_cursor(after, KEY)
    async with database.connect() as connection:
        rows = await keys.list_tenant_keys(tenant, after=after, limit=limit + 1).async_fetch_all(connection)
    return page([_to_object(row) for row in rows], limit)


@router.get("/v1/api_keys/{api_key_id}")
async def get_key(api_key_id: str, database: DatabaseDep, tenant: TenantDep) -> ApiKeyObject:
    """One key, without its secret."""
    async with database.connect() as connection:
        return _to_object(await _find(connection, api_key_id, tenant))


@router.post("/v1/api_keys/{api_key_id}/revoke")
async def revoke_key(
    api_key_id: str, database: DatabaseDep, key_ring: KeyRingDep, tenant: TenantDep, caller: CallerDep
) -> ApiKeyObject:
    """End a key now. Its batches are finished; the last key may be revoked, too, and requests still need one."""
    async with database.begin() as connection:
        await _find(connection, api_key_id, tenant)
        await _check_current(connection, caller)
        await connection.execute(keys.revoke_key(api_key_id))
        row = await _find(connection, api_key_id, tenant)
    key_ring.forget(api_key_id)
    log.info("api_key_revoked", key=api_key_id, by=caller.key_id)
    return _to_object(row)


@router.post("/v1/api_keys/{api_key_id}/rotate")
async def rotate_key(
    api_key_id: str,
    body: OptionalJsonBody[ApiKeyRotate],
    database: DatabaseDep,
    settings: SettingsDep,
    key_ring: KeyRingDep,
    tenant: TenantDep,
    caller: CallerDep,
    create_once: CreateOnceDep,
) -> ApiKeyWithSecret:
    """Create a key with the same name and rights. The old one stays valid for a while."""
    made = new_key()
    grace = timedelta(seconds=body.grace_seconds)
    expires_at = end_of(caller, _moment(body.expires_after_seconds))

    async def create(key_id: str) -> ApiKeyWithSecret:
        async with database.begin() as connection:
            old = await _find(connection, api_key_id, tenant)
            await _check_current(connection, caller)
            await _check_room(connection, tenant)
            check_covers(caller, settings, models=old.models, limits=old.limits)
            statement = keys.rotate_key(api_key_id, key_id, made, grace=grace, expires_at=expires_at)
            row = await statement.async_fetch_optional(connection)
        if row is None:
            message = "This API key is revoked, so it cannot be rotated. Create another one."
            raise bad_request(message, code="api_key_revoked", param="api_key_id")
        return _with_secret(row, made)

    async def find(key_id: str) -> ApiKeyWithSecret:
        async with database.connect() as connection:
            return _with_secret(await _find(connection, key_id, tenant), made)

    created = await create_once(KEY, find=find, create=create)
    key_ring.forget(api_key_id)
    log.info("api_key_rotated", key=api_key_id, new_key=created.id, by=caller.key_id)
    return created


def _check_first(body: ApiKeyCreate) -> None:
    """Raise the 400 of a first key that could not create others, or would leave the server without one."""
    reason = "requests need a key once it exists, and only an admin's can create others"
    if Scope.ADMIN not in body.scopes:
        message = f"The first key must have the scope 'admin': {reason}."
        raise bad_request(message, code="invalid_value", param="scopes")
    for name in _RESTRICTIONS:
        if getattr(body, name) is not None:
            message = f"The first key may not have '{name}': {reason}, with at most its own rights."
            raise bad_request(message, code="invalid_value", param=name)


async def _check_current(connection: AsyncConnection, caller: Caller) -> None:
    """Raise the 401 of a caller whose rights, which are cached, have ended; of two first keys, one is created."""
    if caller.key_id is None:
        await connection.execute(keys.lock_quota("first key"))
        is_current = not (await connection.execute(keys.any_key())).scalar_one()
    else:
        is_current = (await connection.execute(keys.still_valid([caller.key_id]))).first() is not None
    if not is_current:
        raise not_valid()


async def _check_room(connection: AsyncConnection, tenant: str) -> None:
    if (await connection.execute(keys.count_valid_keys(tenant))).scalar_one() >= _MAX_KEYS:
        raise bad_request(f"There can be {_MAX_KEYS} valid keys; revoke one first.", code="too_many_api_keys")


async def _find(connection: AsyncConnection, key_id: str, tenant: str) -> KeyRow:
    row = await keys.find_key(key_id, tenant).async_fetch_optional(connection) if is_id(key_id) else None
    if row is None:
        raise _missing(key_id)
    return row


def _missing(key_id: str) -> ApiError:
    if key_id.startswith("sk-"):  # a secret is not repeated
        return not_found("There is no such API key: give its id, not the key itself.", param="api_key_id")
    return not_found(f"There is no API key '{key_id[:64]}'.", param="api_key_id")


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)


def _to_object(row: KeyRow) -> ApiKeyObject:
    return ApiKeyObject(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        state=row.state,
        scopes=[Scope(scope) for scope in row.scopes],
        models=row.models,
        created_at=unix_seconds(row.created_at) or 0,
        expires_at=unix_seconds(row.expires_at),
        revoked_at=unix_seconds(row.revoked_at),
        **asdict(row.limits),
    )


def _with_secret(row: KeyRow, made: NewKey, warning: str | None = None) -> ApiKeyWithSecret:
    """The key with its secret, if this request made it."""
    is_made_here = row.digest == made.digest
    return ApiKeyWithSecret(**dict(_to_object(row)), key=made.text if is_made_here else None, warning=warning)
