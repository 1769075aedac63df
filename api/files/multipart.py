"""Read a multipart body into a file of the store, with constant memory."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import IO, Annotated, Final

import anyio.to_thread
from fastapi import Depends, Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from api.files.disk_space import full_disk_is_a_problem
from api.http.json_body import check_not_compressed
from api.http.openapi import RequestBody, form_schema
from api.schemas.uploads import PURPOSES
from core.errors import ApiError, Problem, bad_request
from core.files.file_store import READ_BYTES, FileStore
from core.schemas.batch import OutputExpiry
from core.settings import Settings

FORM_OVERHEAD: Final = 1 << 16  # bytes of a form around its file
BINARY: Final = {"type": "string", "format": "binary"}
_MAX_FIELD_BYTES: Final = 64 * 1024
MAX_FILENAME: Final = 255
_NOT_INERT: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # Unicode's categories
_EXPIRY_FIELDS: Final = ("expires_after", "expires_after[anchor]", "expires_after[seconds]")
_SECONDS: Final = re.compile(r"[0-9]{1,7}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A checked upload; `content` is still in the temporary file of the form."""

    content: UploadFile
    size: int
    filename: str
    purpose: str
    expires_at: datetime | None


@asynccontextmanager
async def open_form(request: Request, *, max_field_bytes: int = _MAX_FIELD_BYTES) -> AsyncIterator[FormData]:
    """Parse the multipart body, whose file is written to a temporary one as it arrives; leaving deletes that file."""
    form = await _parse(request, max_field_bytes)
    try:
        yield form
    finally:
        await form.close()


async def read_form(request: Request) -> AsyncIterator[FormData]:
    """The same as a dependency: the temporary file lives until the endpoint returns."""
    async with open_form(request) as form:
        yield form


_FORM: Final = Depends(read_form, scope="function")
FileForm = Annotated[
    FormData,
    _FORM,
    RequestBody(
        {
            "multipart/form-data": form_schema(
                {"file": BINARY, "purpose": {"type": "string", "enum": list(PURPOSES)}},
                {
                    "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                    "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
                    "expires_after": {"type": "string", "description": "Both as one JSON object."},
                },
            )
        }
    ),
]
PartForm = Annotated[FormData, _FORM, RequestBody({"multipart/form-data": form_schema({"data": BINARY})})]


async def _parse(request: Request, max_field_bytes: int) -> FormData:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        message = "Send the bytes as a file of a form: 'Content-Type: multipart/form-data'."
        raise ApiError(Problem(status=415, message=message, code="unsupported_media_type"))
    check_not_compressed(request)
    try:
        with full_disk_is_a_problem():
            return await request.form(max_files=1, max_fields=8, max_part_size=max_field_bytes)
    except HTTPException as error:
        if error.status_code == 413:
            raise
        raise bad_request(f"The multipart body is not valid: {error.detail}", code="invalid_multipart") from None
    except UnicodeError:  # a charset of Python that decodes nothing, such as 'undefined'
        message = "The multipart body is not valid: its charset does not decode it. Use utf-8."
        raise bad_request(message, code="invalid_multipart") from None


def check_upload(form: FormData, settings: Settings) -> Upload:
    """Return the upload that a form describes, or raise the 4xx that names the field."""
    purpose = form.get("purpose")
    if purpose is None:
        raise bad_request("Missing required parameter: 'purpose'.", code="missing_required_parameter", param="purpose")
    if purpose not in PURPOSES:
        message = f"Invalid value for 'purpose': use one of {', '.join(PURPOSES)}."
        raise bad_request(message, code="invalid_value", param="purpose")
    content = form.get("file")
    if not isinstance(content, UploadFile):
        message = "Missing required parameter: 'file', sent as a file of the form."
        raise bad_request(message, code="missing_required_parameter", param="file")
    size, filename = content.size or 0, clean_filename(content.filename or "")
    check_name(str(purpose), filename, param="file")
    check_size(str(purpose), size, settings.file_bytes, settings, param="file")
    return Upload(
        content=content,
        size=size,
        filename=filename,
        purpose=str(purpose),
        expires_at=_expiry(form, str(purpose), settings),
    )


def check_name(purpose: str, filename: str, *, param: str) -> None:
    """Raise the 400 of a batch input whose name has another extension than `.jsonl`; a name may have none."""
    extension = PurePosixPath(filename).suffix.lower()
    if purpose == "batch" and extension not in ("", ".jsonl"):
        message = f"A batch input file is JSON Lines: its name must end in '.jsonl', not '{extension[:16]}'."
        raise bad_request(message, code="invalid_file_format", param=param)


def check_size(purpose: str, size: int, limit: int, settings: Settings, *, param: str) -> None:
    """Raise the 413 of a file over `limit` bytes, or over the limit of batch files if it is one."""
    if purpose == "batch":
        limit = min(limit, settings.batch_file_bytes)
    if size > limit:
        message = f"The file has {size} bytes; the limit for this purpose is {limit}. Split it."
        raise ApiError(Problem(status=413, message=message, code="file_too_large", param=param))


def _expiry(form: FormData, purpose: str, settings: Settings) -> datetime | None:
    unknown = [name for name in form if name.startswith("expires_after") and name not in _EXPIRY_FIELDS]
    if unknown:
        message = f"Unknown field: use {', '.join(map(repr, _EXPIRY_FIELDS[1:]))}."
        raise bad_request(message, code="invalid_value", param=unknown[0][:64])
    if (document := form.get("expires_after")) is not None:
        return expiry(purpose, _seconds_of_json(document), settings)
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return expiry(purpose, None, settings)
    if anchor != "created_at":
        message = "Invalid value for 'expires_after[anchor]': use 'created_at'."
        raise bad_request(message, code="invalid_value", param="expires_after[anchor]")
    if not isinstance(seconds, str) or not _SECONDS.fullmatch(seconds) or not 3600 <= int(seconds) <= 2_592_000:
        message = "Invalid value for 'expires_after[seconds]': use 3600 to 2592000."
        raise bad_request(message, code="invalid_value", param="expires_after[seconds]")
    return expiry(purpose, int(seconds), settings)


def _seconds_of_json(document: UploadFile | str) -> int:
    """Read an `expires_after` that was sent as one field of JSON."""
    try:
        return OutputExpiry.model_validate_json(document if isinstance(document, str) else "").seconds
    except ValidationError:
        message = (
            "Invalid value for 'expires_after': use 'expires_after[anchor]' and 'expires_after[seconds]', or JSON: "
            '{"anchor": "created_at", "seconds": 3600 to 2592000}.'
        )
        raise bad_request(message, code="invalid_value", param="expires_after") from None


def expiry(purpose: str, seconds: int | None, settings: Settings) -> datetime | None:
    """The expiry of a file created now: after `seconds` if given, else batch files after `file_days` and others never."""
    if seconds is not None:
        return datetime.now(UTC) + timedelta(seconds=seconds)
    return datetime.now(UTC) + timedelta(days=settings.file_days) if purpose == "batch" else None


def clean_filename(name: str) -> str:
    """Keep the last part of a path, without control and direction characters, line ends and surrogates, and cut to 255."""
    kept = "".join(char for char in name if unicodedata.category(char) not in _NOT_INERT)
    last = kept.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return last[-MAX_FILENAME:] if last.strip(".") else "file"


async def store(content: IO[bytes], files: FileStore, file_id: str) -> None:
    """Copy the content into the store in a thread; the file is complete and synced, or absent."""

    def copy() -> None:
        content.seek(0)
        with files.write(file_id) as target:
            shutil.copyfileobj(content, target, READ_BYTES)

    with full_disk_is_a_problem():
        await anyio.to_thread.run_sync(copy)


async def digest_of_form(form: FormData, upload: Upload) -> str:
    """Digest of fields, name and content; the multipart body around them differs each time."""
    fields = sorted((name, value) for name, value in form.multi_items() if isinstance(value, str))
    digest = hashlib.sha256(json.dumps([upload.filename, fields]).encode())

    def read() -> None:
        upload.content.file.seek(0)
        while chunk := upload.content.file.read(READ_BYTES):
            digest.update(chunk)

    await anyio.to_thread.run_sync(read)
    return digest.hexdigest()
