"""`/v1/uploads`: a big file in parts, each stored as it arrives and joined at the end."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.datastructures import UploadFile

from api.access.quotas import check_pending, check_storage
from api.access.scopes import require_scopes
from api.dependencies import DatabaseDep, FilesDep, SettingsDep, TenantDep
from api.files.disk_space import check_room, check_room_for_body, declared_length, full_disk_is_a_problem
from api.files.lookup import find_file, to_file_object
from api.files.multipart import FORM_OVERHEAD, PartForm, check_name, check_size, clean_filename, expiry, store
from api.http.json_body import JsonBody
from api.http.pagination import unix_seconds
from api.http.request_log import note_ids
from api.schemas.uploads import UploadComplete, UploadCreate, UploadObject, UploadPartObject
from api.writes.idempotency import CreateOnceDep
from core import ids
from core.api_keys import Scope
from core.errors import ApiError, Problem, bad_request, not_found
from core.failpoints import Point, failpoint
from core.files.file_store import FileStore
from core.ids import is_id
from core.schemas.objects import FileObject
from db import files, uploads
from db.connections import async_transaction
from db.uploads import UploadRow

router = APIRouter(tags=["uploads"], dependencies=[require_scopes(Scope.FILES)])
part_router = APIRouter(tags=["uploads"], dependencies=[require_scopes(Scope.FILES)])  # has its own body limit


@router.post("/v1/uploads")
async def create_upload(
    body: JsonBody[UploadCreate],
    settings: SettingsDep,
    database: DatabaseDep,
    file_store: FilesDep,
    tenant: TenantDep,
    create_once: CreateOnceDep,
) -> UploadObject:
    """Announce a file; its parts follow."""
    filename = clean_filename(body.filename)
    check_name(body.purpose, filename, param="filename")
    check_size(body.purpose, body.bytes, settings.upload_bytes, settings, param="bytes")
    await check_room(file_store, settings.free_disk_bytes, body.bytes)

    async def create(upload_id: str) -> UploadObject:
        statement = uploads.insert_upload(
            lifetime=timedelta(seconds=settings.upload_seconds),
            id=upload_id,
            tenant_id=tenant,
            purpose=body.purpose,
            filename=filename,
            mime_type=body.mime_type,
            bytes=body.bytes,
            file_expires_seconds=body.expires_after.seconds if body.expires_after else None,
        )
        async with database.begin() as connection:
            await check_storage(connection, settings, tenant, body.bytes, param="bytes")
            row = await statement.async_fetch_one(connection)
        return _to_object(row, None)

    return await create_once(
        ids.UPLOAD, find=lambda upload_id: _show_upload(database, upload_id, tenant), create=create
    )


async def check_room_for_part(
    request: Request,
    upload_id: str,
    database: DatabaseDep,
    file_store: FilesDep,
    settings: SettingsDep,
    tenant: TenantDep,
) -> None:
    """Raise the 4xx or 507 of a part that cannot be stored, before its body is read."""
    _check_pending(await _find(database, upload_id, tenant))
    await check_room_for_body(request, file_store, settings)
    async with database.begin() as connection:
        await check_pending(connection, settings, tenant, max(0, declared_length(request) - FORM_OVERHEAD))


@part_router.post("/v1/uploads/{upload_id}/parts", dependencies=[Depends(check_room_for_part)])
async def add_part(
    upload_id: str,
    form: PartForm,
    settings: SettingsDep,
    database: DatabaseDep,
    file_store: FilesDep,
    tenant: TenantDep,
) -> UploadPartObject:
    """Store a part; parts may arrive in any order, many at a time."""
    content = form.get("data")
    if not isinstance(content, UploadFile):
        message = "Missing required parameter: 'data', sent as a file."
        raise bad_request(message, code="missing_required_parameter", param="data")
    size = content.size or 0
    _check_part_size(size, settings.upload_part_bytes)
    part_id = ids.new_id(ids.PART)
    await store(content.file, file_store, part_id)
    failpoint(Point.PART_STORED)
    try:
        async with database.begin() as connection:
            await check_pending(connection, settings, tenant, size)
            row = await uploads.insert_part(part_id, upload_id, size).async_fetch_optional(connection)
        if row is None:
            raise _ended("no longer pending")
    except ApiError:
        await anyio.to_thread.run_sync(file_store.delete, part_id)
        raise
    failpoint(Point.PART_COMMITTED)
    return UploadPartObject(id=row.id, created_at=unix_seconds(row.created_at) or 0, upload_id=upload_id)


@router.post("/v1/uploads/{upload_id}/complete")
async def complete_upload(
    upload_id: str,
    body: JsonBody[UploadComplete],
    settings: SettingsDep,
    database: DatabaseDep,
    file_store: FilesDep,
    tenant: TenantDep,
) -> UploadObject:
    """Join the parts in the order given. A second call returns the completed upload again."""
    upload = await _find(database, upload_id, tenant)
    if upload.status == "completed":
        return await _show_upload(database, upload_id, tenant)
    _check_pending(upload)
    async with database.connect() as connection:
        sizes = {row.id: row.bytes for row in await uploads.parts_of(upload_id).async_fetch_all(connection)}
    _check_parts(body.part_ids, sizes, upload.bytes)
    file_id = ids.new_id(ids.FILE)
    note_ids(upload=upload_id, file=file_id)
    try:
        await _join(file_store, file_id, body)
    except FileNotFoundError:  # the parts were swept, since another request ended the upload meanwhile
        _check_completed(await _find(database, upload_id, tenant))
        return await _show_upload(database, upload_id, tenant)
    failpoint(Point.PARTS_JOINED)
    file = files.add_file(
        id=file_id,
        tenant_id=tenant,
        purpose=upload.purpose,
        filename=upload.filename,
        bytes=upload.bytes,
        expires_at=expiry(upload.purpose, upload.file_expires_seconds, settings),
    )
    async with async_transaction(database, committed=Point.PARTS_COMPLETED) as connection:
        row = await uploads.end_upload(upload_id, "completed", file_id).async_fetch_optional(connection)
        if row is not None:
            await connection.execute(file)
    if row is None:  # another request ended it first
        await anyio.to_thread.run_sync(file_store.delete, file_id)
        _check_completed(await _find(database, upload_id, tenant))
    return await _show_upload(database, upload_id, tenant)


@router.post("/v1/uploads/{upload_id}/cancel")
async def cancel_upload(upload_id: str, database: DatabaseDep, tenant: TenantDep) -> UploadObject:
    """Accept no further parts; stored ones are swept. A second call changes nothing."""
    upload = await _find(database, upload_id, tenant)
    if upload.status != "cancelled":
        _check_pending(upload)
        async with database.begin() as connection:
            await uploads.end_upload(upload_id, "cancelled").async_fetch_optional(connection)
        upload = await _find(database, upload_id, tenant)
        if upload.status != "cancelled":
            raise _ended(upload.status)
    return _to_object(upload, None)


async def _show_upload(database: AsyncEngine, upload_id: str, tenant: str) -> UploadObject:
    """The upload as it is now, with its file unless that was deleted."""
    upload = await _find(database, upload_id, tenant)
    file = None
    if upload.file_id is not None:
        try:
            file = to_file_object(await find_file(database, upload.file_id, tenant))
        except ApiError:
            file = None
    return _to_object(upload, file)


async def _find(database: AsyncEngine, upload_id: str, tenant: str) -> UploadRow:
    """The row of a tenant's upload; raises one and the same 404 for unknown and foreign ids."""
    if is_id(upload_id):
        async with database.connect() as connection:
            row = await uploads.find_upload(upload_id, tenant).async_fetch_optional(connection)
        if row is not None:
            return row
    raise not_found(f"There is no upload '{upload_id[:64]}'.", param="upload_id")


async def _join(file_store: FileStore, file_id: str, body: UploadComplete) -> None:
    """Raises FileNotFoundError for a part that is gone."""
    digest = hashlib.md5(usedforsecurity=False) if body.md5 else None

    def join() -> None:
        file_store.join(file_id, body.part_ids, digest)

    with full_disk_is_a_problem():
        await anyio.to_thread.run_sync(join)
    if digest is not None and digest.hexdigest() != body.md5:
        await anyio.to_thread.run_sync(file_store.delete, file_id)
        message = "The parts in this order do not have this md5. Check them and complete the upload again."
        raise bad_request(message, code="md5_mismatch", param="md5")


def _check_parts(part_ids: list[str], sizes: dict[str, int], expected: int) -> None:
    for index, part_id in enumerate(part_ids):
        if part_id not in sizes:
            message = f"Invalid value for 'part_ids[{index}]': this upload has no such part."
            raise bad_request(message, code="invalid_value", param=f"part_ids[{index}]")
    total = sum(sizes[part_id] for part_id in part_ids)
    if total != expected:
        message = f"The parts have {total} bytes together, but the upload was announced with {expected}."
        raise bad_request(message, code="bytes_mismatch", param="part_ids")


def _check_part_size(size: int, limit: int) -> None:
    if size > limit:
        message = f"The part has {size} bytes; the limit is {limit}. Send more parts."
        raise ApiError(Problem(status=413, message=message, code="file_too_large", param="data"))
    if size == 0:
        raise bad_request("Invalid value for 'data': the part is empty.", code="invalid_value", param="data")


def _check_pending(upload: UploadRow) -> None:
    if (status := _status(upload)) != "pending":
        raise _ended(status)


def _check_completed(upload: UploadRow) -> None:
    if upload.status != "completed":
        raise _ended(_status(upload))


def _status(upload: UploadRow) -> str:
    """As of now: the sweep that writes `expired` may be late."""
    is_late = upload.status == "pending" and upload.expires_at <= datetime.now(UTC)
    return "expired" if is_late else str(upload.status)


def _ended(status: str) -> ApiError:
    message = f"The upload is {status}; only a pending one takes parts or can be completed or cancelled."
    return bad_request(message, code="upload_not_pending", param="upload_id")


def _to_object(upload: UploadRow, file: FileObject | None) -> UploadObject:
    return UploadObject(
        id=upload.id,
        bytes=upload.bytes,
        created_at=unix_seconds(upload.created_at) or 0,
        expires_at=unix_seconds(upload.expires_at) or 0,
        filename=upload.filename,
        purpose=upload.purpose,
        status=_status(upload),
        file=file,
    )
