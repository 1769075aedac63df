"""`/v1/uploads`: a big file in parts, each stored as it comes and joined in the end."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from starlette.datastructures import UploadFile

from api.access.quotas import check_pending, check_storage
from api.access.scopes import require_scopes
from api.dependencies import AppState, StateDep, TenantDep
from api.files.disk_space import check_room, check_room_for_body, full_disk_is_a_problem, said_length
from api.files.lookup import find_file, to_file_object
from api.files.multipart import FORM_OVERHEAD, check_name, check_size, clean_filename, expiry, read_form, store
from api.http.json_body import read_wire
from api.http.openapi import form_docs, request_docs
from api.http.pagination import unix_seconds
from api.schemas.uploads import UploadComplete, UploadCreate, UploadObject, UploadPartObject
from api.writes.idempotency import create_once, digest_of_body
from core import ids
from core.api_keys import Scope
from core.errors import ApiError, Problem, bad_request, not_found
from core.failpoints import Point, failpoint
from core.ids import is_id
from core.schemas.objects import FileObject
from core.settings import Settings
from db import files, uploads
from db.uploads import PartRow, UploadRow

_PART = form_docs({"data": {"type": "string", "format": "binary"}})


def add_upload_routes(app: FastAPI, settings: Settings) -> None:
    """A part's body limit is a setting, so this router is made with the app."""
    router = APIRouter(tags=["uploads"], dependencies=[require_scopes(Scope.FILES)])
    router.post("/v1/uploads", openapi_extra=request_docs(UploadCreate))(create_upload)
    part_limit = settings.upload_part_bytes + FORM_OVERHEAD
    router.post("/v1/uploads/{upload_id}/parts", max_body_size=part_limit, openapi_extra=_PART)(add_part)
    router.post("/v1/uploads/{upload_id}/complete", openapi_extra=request_docs(UploadComplete))(complete_upload)
    router.post("/v1/uploads/{upload_id}/cancel")(cancel_upload)
    app.include_router(router)


async def create_upload(request: Request, state: StateDep, tenant: TenantDep) -> UploadObject:
    """Announce a file; its parts follow."""
    body = await read_wire(request, UploadCreate)
    check_name(body.purpose, body.filename, param="filename")
    check_size(body.purpose, body.bytes, state.settings.upload_bytes, state, param="bytes")
    await check_room(state, body.bytes)
    return await create_once(
        request,
        state,
        tenant,
        ids.UPLOAD,
        body_digest=lambda: digest_of_body(request),
        find=lambda upload_id: get_upload(upload_id, state, tenant),
        create=lambda upload_id: _insert_upload(body, upload_id, state, tenant),
    )


async def _insert_upload(body: UploadCreate, upload_id: str, state: AppState, tenant: str) -> UploadObject:
    statement = uploads.insert_upload(
        lifetime=timedelta(seconds=state.settings.upload_seconds),
        id=upload_id,
        tenant_id=tenant,
        purpose=body.purpose,
        filename=clean_filename(body.filename),
        mime_type=body.mime_type,
        bytes=body.bytes,
        file_expires_seconds=body.expires_after.seconds if body.expires_after else None,
    )
    async with state.database.begin() as connection:
        await check_storage(connection, state, tenant, body.bytes, param="bytes")
        row = await statement.async_fetch_one(connection)
    return _to_object(row, None)


async def add_part(request: Request, upload_id: str, state: StateDep, tenant: TenantDep) -> UploadPartObject:
    """Store a part; parts may come in any order, many at a time."""
    _check_pending(await _find(state, upload_id, tenant))
    await check_room_for_body(state, request)
    async with state.database.begin() as connection:
        await check_pending(connection, state, tenant, max(0, said_length(request) - FORM_OVERHEAD))
    form = await read_form(request)
    try:
        content = form.get("data")
        if not isinstance(content, UploadFile):
            message = "Missing required parameter: 'data', sent as a file."
            raise bad_request(message, code="missing_required_parameter", param="data")
        size = content.size or 0
        _check_part_size(size, state.settings.upload_part_bytes)
        part_id = ids.new_id(ids.PART)
        await store(content, state, part_id)
    finally:
        await form.close()
    failpoint(Point.PART_STORED)
    try:
        row = await _insert_part(part_id, upload_id, size, state, tenant)
    except ApiError:
        await anyio.to_thread.run_sync(state.files.delete, part_id)
        raise
    return UploadPartObject(id=row.id, created_at=unix_seconds(row.created_at) or 0, upload_id=upload_id)


async def _insert_part(part_id: str, upload_id: str, size: int, state: AppState, tenant: str) -> PartRow:
    async with state.database.begin() as connection:
        await check_pending(connection, state, tenant, size)
        row = await uploads.insert_part(part_id, upload_id, size).async_fetch_optional(connection)
    if row is None:
        raise _ended("ended")
    failpoint(Point.PART_COMMITTED)
    return row


async def complete_upload(request: Request, upload_id: str, state: StateDep, tenant: TenantDep) -> UploadObject:
    """Join the parts in the order given. Asking again gives the completed upload again."""
    body = await read_wire(request, UploadComplete)
    upload = await _find(state, upload_id, tenant)
    if upload.status == "completed":
        return await get_upload(upload_id, state, tenant)
    _check_pending(upload)
    async with state.database.connect() as connection:
        sizes = {row.id: row.bytes for row in await uploads.parts_of(upload_id).async_fetch_all(connection)}
    _check_parts(body.part_ids, sizes, upload.bytes)
    file_id = ids.new_id(ids.FILE)
    await _join(state, file_id, body)
    failpoint(Point.PARTS_JOINED)
    file = files.add_file(
        id=file_id,
        tenant_id=tenant,
        purpose=upload.purpose,
        filename=upload.filename,
        bytes=upload.bytes,
        expires_at=expiry(upload.purpose, upload.file_expires_seconds, state),
    )
    async with state.database.begin() as connection:
        row = await uploads.end_upload(upload_id, "completed", file_id).async_fetch_optional(connection)
        if row is not None:
            await connection.execute(file)
    failpoint(Point.PARTS_COMPLETED)
    if row is None:  # somebody else was quicker
        await anyio.to_thread.run_sync(state.files.delete, file_id)
        _check_completed(await _find(state, upload_id, tenant))
    return await get_upload(upload_id, state, tenant)


async def cancel_upload(upload_id: str, state: StateDep, tenant: TenantDep) -> UploadObject:
    """No more parts; those that came are swept. Asking twice is asking once."""
    upload = await _find(state, upload_id, tenant)
    if upload.status != "cancelled":
        _check_pending(upload)
        async with state.database.begin() as connection:
            await uploads.end_upload(upload_id, "cancelled").async_fetch_optional(connection)
        upload = await _find(state, upload_id, tenant)
        if upload.status != "cancelled":
            raise _ended(upload.status)
    return _to_object(upload, None)


async def get_upload(upload_id: str, state: AppState, tenant: str) -> UploadObject:
    """The upload as it is now, with its file unless that was deleted since."""
    upload = await _find(state, upload_id, tenant)
    file = None
    if upload.file_id is not None:
        try:
            file = to_file_object(await find_file(state, upload.file_id, tenant))
        except ApiError:
            file = None
    return _to_object(upload, file)


async def _find(state: AppState, upload_id: str, tenant: str) -> UploadRow:
    """An upload of this tenant, or the 404 that unknown and foreign ids share."""
    if is_id(upload_id):
        async with state.database.connect() as connection:
            row = await uploads.find_upload(upload_id, tenant).async_fetch_optional(connection)
        if row is not None:
            return row
    raise not_found(f"There is no upload '{upload_id[:64]}'.", param="upload_id")


async def _join(state: AppState, file_id: str, body: UploadComplete) -> None:
    digest = hashlib.md5(usedforsecurity=False) if body.md5 else None

    def join() -> None:
        state.files.join(file_id, body.part_ids, digest)

    try:
        with full_disk_is_a_problem():
            await anyio.to_thread.run_sync(join)
    except FileNotFoundError:
        raise _ended("ended") from None  # and was swept while we read
    if digest is not None and digest.hexdigest() != body.md5:
        await anyio.to_thread.run_sync(state.files.delete, file_id)
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
    message = f"The upload is {status}; only a pending one takes parts, can be completed or cancelled."
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
