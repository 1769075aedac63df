"""`/v1/files`: upload, list, get, delete, content."""

from __future__ import annotations

from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse

from api.access.quotas import check_storage
from api.access.scopes import require_scopes
from api.dependencies import DatabaseDep, FilesDep, SettingsDep, TenantDep
from api.files.disk_space import check_room_for_body
from api.files.lookup import attachment, find_file, missing_file, to_file_object
from api.files.multipart import FileForm, check_upload, digest_of_form, store
from api.http.openapi import response_docs
from api.http.pagination import check_cursor, page
from api.http.ranges import Validators, requested_span
from api.writes.idempotency import CreateOnceDep
from core import ids
from core.api_keys import Scope
from core.failpoints import Point, failpoint
from core.schemas.objects import DeletedObject, FileObject, ListObject
from db import files
from db.connections import async_transaction

router = APIRouter(tags=["files"], dependencies=[require_scopes(Scope.FILES)])
upload_router = APIRouter(tags=["files"], dependencies=[require_scopes(Scope.FILES)])  # has its own body limit

_WHOLE = response_docs(media_type="application/octet-stream")
_CONTENT = {**_WHOLE, 206: {**_WHOLE[200], "description": "The part of it that was asked for."}}


@upload_router.post("/v1/files", dependencies=[Depends(check_room_for_body)])
async def create_file(
    form: FileForm,
    settings: SettingsDep,
    database: DatabaseDep,
    file_store: FilesDep,
    tenant: TenantDep,
    create_once: CreateOnceDep,
) -> FileObject:
    """Store a file; its content is checked when a batch uses it."""
    upload = check_upload(form, settings)

    async def create(file_id: str) -> FileObject:
        """Bytes first, then the row: bytes without a row are swept, and a commit that failed may have happened."""
        async with database.begin() as connection:
            await check_storage(connection, settings, tenant, upload.size, param="file")
        await store(upload.content.file, file_store, file_id)
        failpoint(Point.UPLOAD_STORED)
        statement = files.insert_file(
            id=file_id,
            tenant_id=tenant,
            purpose=upload.purpose,
            filename=upload.filename,
            bytes=upload.size,
            expires_at=upload.expires_at,
        )
        async with async_transaction(database, committed=Point.UPLOAD_COMMITTED) as connection:
            await check_storage(connection, settings, tenant, upload.size, param="file")
            row = await statement.async_fetch_one(connection)
        return to_file_object(row)

    return await create_once(
        ids.FILE,
        find=lambda file_id: get_file(file_id, database, tenant),
        create=create,
        body_digest=lambda: digest_of_form(form, upload),
    )


@router.get("/v1/files")
async def list_files(
    database: DatabaseDep,
    tenant: TenantDep,
    purpose: Annotated[str | None, Query(max_length=64, pattern=r"^[^\x00]*$")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> ListObject[FileObject]:
    """Newest first, or oldest first with `order=asc`."""
    check_cursor(after, ids.FILE)
    statement = files.list_files(tenant, purpose=purpose, after=after, limit=limit + 1, newest_first=order == "desc")
    async with database.connect() as connection:
        rows = await statement.async_fetch_all(connection)
    return page([to_file_object(row) for row in rows], limit)


@router.get("/v1/files/{file_id}")
async def get_file(file_id: str, database: DatabaseDep, tenant: TenantDep) -> FileObject:
    """One file."""
    return to_file_object(await find_file(database, file_id, tenant))


@router.delete("/v1/files/{file_id}")
async def delete_file(file_id: str, database: DatabaseDep, tenant: TenantDep) -> DeletedObject:
    """Delete a file at once; a batch that reads it keeps the bytes until it ends."""
    await find_file(database, file_id, tenant)
    async with database.begin() as connection:
        await connection.execute(files.hide_file(file_id, tenant))
    return DeletedObject(id=file_id, object="file")


@router.get("/v1/files/{file_id}/content", response_class=Response, responses=_CONTENT)
async def get_content(
    request: Request, file_id: str, database: DatabaseDep, file_store: FilesDep, tenant: TenantDep
) -> Response:
    """The bytes as they were stored: all, or one range of them."""
    row = await find_file(database, file_id, tenant)
    validators = Validators.of(file_id, row.created_at)
    span = requested_span(request.headers, row.bytes, validators)
    try:
        chunks = await anyio.to_thread.run_sync(file_store.read, file_id, span.start, span.end)
    except FileNotFoundError:
        raise missing_file(file_id) from None
    headers = {
        **validators.headers(),
        "content-length": str(span.end - span.start),
        "content-disposition": attachment(row.filename),
    }
    if span.is_partial:
        headers["content-range"] = f"bytes {span.start}-{span.end - 1}/{span.size}"
    status = 206 if span.is_partial else 200
    return StreamingResponse(chunks, status, headers, media_type="application/octet-stream")
