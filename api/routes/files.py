"""`/v1/files`: upload, list, get, delete, content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Literal
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import Row

from api.openapi import gives, takes_form
from api.paging import page, unix_seconds
from api.scopes import needs
from api.state import ApiState, StateDep, TenantDep
from api.uploads import PURPOSES, check_upload, read_form, store
from core import ids
from core.errors import bad_request, not_found
from core.files import READ_BYTES
from core.ids import is_id
from core.keys import Scope
from core.settings import Settings
from core.wire.objects import DeletedObject, FileObject, ListObject
from db import files

_FORM_OVERHEAD = 1 << 16
_FORM = takes_form(
    {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": list(PURPOSES)}},
    {
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
)
_CONTENT = gives(media_type="application/octet-stream")


def add_file_routes(app: FastAPI, settings: Settings) -> None:
    """The upload's body limit is a setting, so this router is made with the app."""
    router = APIRouter(tags=["files"], dependencies=[needs(Scope.FILES)])
    limit = max(settings.file_bytes, settings.batch_file_bytes) + _FORM_OVERHEAD
    router.post("/v1/files", max_body_size=limit, openapi_extra=_FORM)(create_file)
    router.get("/v1/files")(list_files)
    router.get("/v1/files/{file_id}")(get_file)
    router.delete("/v1/files/{file_id}")(delete_file)
    router.get("/v1/files/{file_id}/content", responses=_CONTENT)(get_content)
    app.include_router(router)


async def create_file(request: Request, state: StateDep, tenant: TenantDep) -> FileObject:
    """Store a file; its content is looked at when a batch uses it."""
    form = await read_form(request)
    try:
        upload = check_upload(form, state)
        file_id = ids.new_id(ids.FILE)
        await store(upload, state, file_id)
    finally:
        await form.close()
    statement = files.insert_file(
        id=file_id,
        tenant_id=tenant,
        purpose=upload.purpose,
        filename=upload.filename,
        bytes=upload.size,
        expires_at=upload.expires_at,
    )
    try:
        async with state.database.begin() as connection:
            row = (await connection.execute(statement)).one()
    except BaseException:
        state.files.delete(file_id)
        raise
    return _to_object(row)


async def list_files(
    state: StateDep,
    tenant: TenantDep,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> ListObject[FileObject]:
    """Newest first unless asked otherwise."""
    if after is not None:
        await _check_cursor(state, after, tenant)
    statement = files.list_files(tenant, purpose=purpose, after=after, limit=limit + 1, newest_first=order == "desc")
    async with state.database.connect() as connection:
        rows = (await connection.execute(statement)).all()
    return page([_to_object(row) for row in rows], limit)


async def get_file(file_id: str, state: StateDep, tenant: TenantDep) -> FileObject:
    """One file."""
    return _to_object(await find_file(state, file_id, tenant))


async def delete_file(file_id: str, state: StateDep, tenant: TenantDep) -> DeletedObject:
    """Gone at once for the caller; a batch that reads it keeps the bytes until it ends."""
    await find_file(state, file_id, tenant)
    async with state.database.begin() as connection:
        await connection.execute(files.hide_file(file_id, tenant))
    return DeletedObject(id=file_id, object="file")


async def get_content(file_id: str, state: StateDep, tenant: TenantDep) -> StreamingResponse:
    """The bytes, as they were stored."""
    row = await find_file(state, file_id, tenant)
    try:
        stream = state.files.open(file_id)
    except FileNotFoundError:
        raise _missing(file_id) from None
    headers = {
        "content-length": str(row.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(row.filename, safe='')}",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(_chunks(stream), media_type="application/octet-stream", headers=headers)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(READ_BYTES):
            yield chunk


async def find_file(state: ApiState, file_id: str, tenant: str) -> Row[*tuple[Any, ...]]:
    """A file of this tenant, or the 404 that unknown and foreign ids share."""
    if is_id(file_id):
        async with state.database.connect() as connection:
            row = (await connection.execute(files.find_file(file_id, tenant))).one_or_none()
        if row is not None:
            return row
    raise _missing(file_id)


def _missing(file_id: str) -> Exception:
    return not_found(f"There is no file '{file_id[:64]}'.", param="file_id")


async def _check_cursor(state: ApiState, after: str, tenant: str) -> None:
    async with state.database.connect() as connection:
        known = is_id(after) and (await connection.execute(files.find_file(after, tenant))).one_or_none() is not None
    if not known:
        raise bad_request("Invalid value for 'after': there is no such file.", code="invalid_value", param="after")


def _to_object(row: Row[*tuple[Any, ...]]) -> FileObject:
    return FileObject(
        id=row.id,
        bytes=row.bytes,
        created_at=unix_seconds(row.created_at) or 0,
        expires_at=unix_seconds(row.expires_at),
        filename=row.filename,
        purpose=row.purpose,
    )
