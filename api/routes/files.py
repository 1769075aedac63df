"""`/v1/files`: upload, list, get, delete, content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, BinaryIO, Literal
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import Response, StreamingResponse

from api.access.quotas import check_storage
from api.access.scopes import require_scopes
from api.dependencies import AppState, StateDep, TenantDep
from api.files.disk_space import check_room_for_body
from api.files.lookup import find_file, missing_file, to_file_object
from api.files.multipart import FORM_OVERHEAD, Upload, check_upload, digest_of_form, read_form, store
from api.http.openapi import form_docs, response_docs
from api.http.pagination import page
from api.http.ranges import Span, Validators, requested_span
from api.schemas.uploads import PURPOSES
from api.writes.idempotency import create_once
from core import ids
from core.api_keys import Scope
from core.errors import bad_request
from core.failpoints import Point, failpoint
from core.file_store import READ_BYTES
from core.ids import is_id
from core.schemas.objects import DeletedObject, FileObject, ListObject
from core.settings import Settings
from db import files

_FORM = form_docs(
    {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": list(PURPOSES)}},
    {
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
)
_WHOLE = response_docs(media_type="application/octet-stream")
_CONTENT = {**_WHOLE, 206: {**_WHOLE[200], "description": "The part of it that was asked for."}}


def add_file_routes(app: FastAPI, settings: Settings) -> None:
    """The upload's body limit is a setting, so this router is made with the app."""
    router = APIRouter(tags=["files"], dependencies=[require_scopes(Scope.FILES)])
    limit = max(settings.file_bytes, settings.batch_file_bytes) + FORM_OVERHEAD
    router.post("/v1/files", max_body_size=limit, openapi_extra=_FORM)(create_file)
    router.get("/v1/files")(list_files)
    router.get("/v1/files/{file_id}")(get_file)
    router.delete("/v1/files/{file_id}")(delete_file)
    router.get("/v1/files/{file_id}/content", responses=_CONTENT)(get_content)
    router.head("/v1/files/{file_id}/content", include_in_schema=False)(get_content)
    app.include_router(router)


async def create_file(request: Request, state: StateDep, tenant: TenantDep) -> FileObject:
    """Store a file; its content is looked at when a batch uses it."""
    await check_room_for_body(state, request)
    form = await read_form(request)
    try:
        upload = check_upload(form, state)
        return await create_once(
            request,
            state,
            tenant,
            ids.FILE,
            body_digest=lambda: digest_of_form(form, upload),
            find=lambda file_id: get_file(file_id, state, tenant),
            create=lambda file_id: _store_file(upload, file_id, state, tenant),
        )
    finally:
        await form.close()


async def _store_file(upload: Upload, file_id: str, state: AppState, tenant: str) -> FileObject:
    """Bytes, then the row; bytes whose row did not come are swept, since a commit that failed may have happened."""
    async with state.database.begin() as connection:
        await check_storage(connection, state, tenant, upload.size, param="file")
    await store(upload.content, state, file_id)
    failpoint(Point.UPLOAD_STORED)
    statement = files.insert_file(
        id=file_id,
        tenant_id=tenant,
        purpose=upload.purpose,
        filename=upload.filename,
        bytes=upload.size,
        expires_at=upload.expires_at,
    )
    async with state.database.begin() as connection:
        await check_storage(connection, state, tenant, upload.size, param="file")
        row = await statement.async_fetch_one(connection)
    failpoint(Point.UPLOAD_COMMITTED)
    return to_file_object(row)


async def list_files(
    state: StateDep,
    tenant: TenantDep,
    purpose: Annotated[str | None, Query(max_length=64, pattern=r"^[^\x00]*$")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> ListObject[FileObject]:
    """Newest first unless asked otherwise."""
    if after is not None:
        await _check_cursor(state, after, tenant)
    statement = files.list_files(tenant, purpose=purpose, after=after, limit=limit + 1, newest_first=order == "desc")
    async with state.database.connect() as connection:
        rows = await statement.async_fetch_all(connection)
    return page([to_file_object(row) for row in rows], limit)


async def get_file(file_id: str, state: StateDep, tenant: TenantDep) -> FileObject:
    """One file."""
    return to_file_object(await find_file(state, file_id, tenant))


async def delete_file(file_id: str, state: StateDep, tenant: TenantDep) -> DeletedObject:
    """Gone at once for the caller; a batch that reads it keeps the bytes until it ends."""
    await find_file(state, file_id, tenant)
    async with state.database.begin() as connection:
        await connection.execute(files.hide_file(file_id, tenant))
    return DeletedObject(id=file_id, object="file")


async def get_content(request: Request, file_id: str, state: StateDep, tenant: TenantDep) -> Response:
    """The bytes as they were stored: all, or the one range asked for. HEAD gets the headers of it."""
    row = await find_file(state, file_id, tenant)
    validators = Validators.of(file_id, row.created_at)
    span = requested_span(request.headers, row.bytes, validators)
    try:
        stream = state.files.open(file_id)
    except FileNotFoundError:
        raise missing_file(file_id) from None
    headers = {
        **validators.headers(),
        "content-length": str(span.end - span.start),
        "content-disposition": attachment(row.filename),
        "x-content-type-options": "nosniff",
    }
    if span.is_partial:
        headers["content-range"] = f"bytes {span.start}-{span.end - 1}/{span.size}"
    status = 206 if span.is_partial else 200
    if request.method == "HEAD":
        stream.close()
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    return StreamingResponse(_chunks(stream, span), status, headers, media_type="application/octet-stream")


def _chunks(stream: BinaryIO, span: Span) -> Iterator[bytes]:
    with stream:
        stream.seek(span.start)
        left = span.end - span.start
        while left > 0 and (chunk := stream.read(min(READ_BYTES, left))):
            left -= len(chunk)
            yield chunk


def attachment(filename: str) -> str:
    """A Content-Disposition that every client can read: a plain ASCII name, and the true one for those that know how."""
    plain = "".join(char if char.isascii() and char not in '"\\%/;' else "_" for char in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


async def _check_cursor(state: AppState, after: str, tenant: str) -> None:
    async with state.database.connect() as connection:
        known = is_id(after) and await files.find_file(after, tenant).async_fetch_optional(connection) is not None
    if not known:
        raise bad_request("Invalid value for 'after': there is no such file.", code="invalid_value", param="after")
