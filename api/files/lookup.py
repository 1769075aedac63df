"""Look-ups of files: the row of a tenant's file, its API object, and the header of its download."""

from __future__ import annotations

from urllib.parse import quote

from sqlalchemy.ext.asyncio import AsyncEngine

from api.http.pagination import unix_seconds
from core.errors import ApiError, bad_request, not_found
from core.ids import is_id
from core.schemas.objects import FileObject
from db import files
from db.files import FileRow


async def find_file(database: AsyncEngine, file_id: str, tenant: str) -> FileRow:
    """The row of a tenant's file; raises one and the same 404 for unknown and foreign ids."""
    if is_id(file_id):
        async with database.connect() as connection:
            row = await files.find_file(file_id, tenant).async_fetch_optional(connection)
        if row is not None:
            return row
    raise missing_file(file_id)


def missing_file(file_id: str) -> ApiError:
    """The 404 of a file."""
    return not_found(f"There is no file '{file_id[:64]}'.", param="file_id")


def to_file_object(row: FileRow) -> FileObject:
    """The API object of a row."""
    return FileObject(
        id=row.id,
        bytes=row.bytes,
        created_at=unix_seconds(row.created_at) or 0,
        expires_at=unix_seconds(row.expires_at),
        filename=row.filename,
        purpose=row.purpose,
    )


async def check_input(database: AsyncEngine, file_id: str, tenant: str) -> None:
    """Raise the 4xx of an input that is not a batch file of the tenant, while the client still waits for the answer."""
    try:
        row = await find_file(database, file_id, tenant)
    except ApiError:
        raise not_found(f"There is no file '{file_id[:64]}'.", param="input_file_id") from None
    if row.purpose != "batch":
        message = f"The input file has the purpose '{row.purpose}'; upload it with purpose 'batch'."
        raise bad_request(message, code="invalid_file_purpose", param="input_file_id")


def attachment(filename: str) -> str:
    """A Content-Disposition with a plain ASCII name for old clients, and the true name in the `filename*` of RFC 6266."""
    plain = "".join(char if char.isascii() and char not in '"\\%/;' else "_" for char in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
