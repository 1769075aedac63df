"""The table and the mapping of a request: a form with the file, or JSON that names a stored file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Generic, TypeVar

import anyio.to_thread
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.datastructures import FormData

from api.files.disk_space import check_room_for_body, full_disk_is_a_problem
from api.files.lookup import find_file
from api.files.multipart import BINARY, check_upload, digest_of_form, open_form
from api.http.json_body import read_small_json
from api.http.openapi import form_schema
from api.schemas.batch_tables import MapOptions
from core.errors import ApiError, bad_request, not_found
from core.files.file_store import FileStore
from core.schemas.base import parse_body
from core.settings import Settings
from core.strict_json import InvalidJson, parse_json
from mapping.errors import MappingError
from mapping.jobs.messages import TableFile
from mapping.spec import parse_spec

TABLE_PURPOSE: Final = "user_data"
MAX_FIELD_BYTES: Final = 1 << 20
_OF_JSON: Final = ("mapping", "metadata", "output_expires_after")
_NUMBERS: Final = ("priority", "sample")
_JSON_OBJECT: Final = {"type": "string", "description": "One JSON object, as in the other form of this request."}
_REQUIRED: Final = {"file": BINARY, "mapping": _JSON_OBJECT}
_OPTIONAL: Final = {
    "metadata": _JSON_OBJECT,
    "completion_window": {"type": "string"},
    "output_expires_after": _JSON_OBJECT,
    "priority": {"type": "integer"},
}
MAP_FORM: Final = form_schema(_REQUIRED, _OPTIONAL)
PREVIEW_FORM: Final = form_schema(
    {"file": BINARY}, {"mapping": _JSON_OBJECT, **_OPTIONAL, "sample": {"type": "integer"}}
)

_Options_co = TypeVar("_Options_co", bound=MapOptions, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInput(Generic[_Options_co]):
    """An open table, and what to do with it. `file_id` is None for one that was sent with the request."""

    options: _Options_co
    stream: BinaryIO
    name: str
    size: int
    file_id: str | None
    digest: Callable[[], Awaitable[str]]

    @property
    def for_job(self) -> TableFile:
        """The table as a child process gets it."""
        param = "file" if self.file_id is None else "input_file_id"
        return TableFile(descriptor=self.stream.fileno(), name=self.name, param=param)


@asynccontextmanager
async def open_table_input(
    kind: type[_Options_co], request: Request, database: AsyncEngine, files: FileStore, settings: Settings, tenant: str
) -> AsyncIterator[TableInput[_Options_co]]:
    """Read a request. Raises the 4xx that names the field, and the 507 of a disk without room for an upload."""
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        await check_room_for_body(request, files, settings)
        async with open_form(request, max_field_bytes=MAX_FIELD_BYTES) as form:
            yield _sent(kind, form, settings)
        return
    document = await read_small_json(request, settings.body_bytes)
    options = _parse(kind, document)
    if options.input_file_id is None:
        message = "Missing required parameter: 'input_file_id', or send the table as 'file' of a form."
        raise bad_request(message, code="missing_required_parameter", param="input_file_id")

    async def digest() -> str:
        return hashlib.sha256(json.dumps(document).encode()).hexdigest()

    try:
        row = await find_file(database, options.input_file_id, tenant)
        with full_disk_is_a_problem():
            stream = await anyio.to_thread.run_sync(files.open, row.id)
    except (ApiError, FileNotFoundError):
        raise not_found(f"There is no file '{options.input_file_id[:64]}'.", param="input_file_id") from None
    with stream:
        yield TableInput(
            options=options, stream=stream, name=row.filename, size=row.bytes, file_id=row.id, digest=digest
        )


def _sent(kind: type[_Options_co], form: FormData, settings: Settings) -> TableInput[_Options_co]:
    options = _parse(kind, _document(form))
    upload = check_upload(FormData([*form.multi_items(), ("purpose", TABLE_PURPOSE)]), settings)

    async def digest() -> str:
        return await digest_of_form(form, upload)

    return TableInput(
        options=options,
        stream=upload.content.file,
        name=upload.filename,
        size=upload.size,
        file_id=None,
        digest=digest,
    )


def _document(form: FormData) -> dict[str, Any]:  # Any: parsed JSON
    """The fields of a form as the document that JSON would be."""
    if "input_file_id" in form:
        message = "Send the table either as 'file', or as the 'input_file_id' of a JSON body."
        raise bad_request(message, code="invalid_value", param="input_file_id")
    return {name: _value(name, value) for name, value in form.multi_items() if name != "file"}


def _value(name: str, value: Any) -> Any:  # Any: text or a file, and parsed JSON
    """The value of a field; one of another type is left to the check of the whole."""
    if not isinstance(value, str):
        return value
    if name in _OF_JSON:
        try:
            return parse_json(value.encode("utf-8", "surrogatepass"))
        except InvalidJson as error:
            message = f"Invalid value for '{name}': it is not valid JSON: {error}."
            raise bad_request(message, code="invalid_json", param=name) from None
    is_number = name in _NUMBERS and value.removeprefix("-").isdecimal() and value.isascii() and len(value) < 16
    return int(value) if is_number else value


def _parse(kind: type[_Options_co], document: Any) -> _Options_co:  # Any: parsed JSON of unknown shape
    if isinstance(document, dict) and isinstance(document.get("mapping"), dict):
        try:
            parse_spec(document["mapping"])
        except MappingError as error:
            raise bad_request(str(error), code="invalid_mapping", param=mapping_param(error.param)) from None
    return parse_body(kind, document)


def mapping_param(field: str | None) -> str:
    """The name of a field of the mapping in a request."""
    return "mapping" if field is None else f"mapping.{field}"
