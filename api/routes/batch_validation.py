"""`POST /v1/batches/validate`: every error of a batch file, its tokens and an estimate of its duration; nothing is run.

The file is uploaded with the request, or named in it. A clerk checks it: the request is a row, and so is the report.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, NamedTuple

from fastapi import APIRouter, Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.datastructures import FormData

from api.access.scopes import require_scopes
from api.batches.estimates import estimate, recent_work
from api.dependencies import CallerDep, DatabaseDep, FilesDep, RelayDep, SettingsDep, TenantDep, TicketsDep
from api.files.lookup import check_input
from api.files.multipart import BINARY, check_upload, open_form, store
from api.http.event_stream import unless_disconnected
from api.http.json_body import JSON, read_small_json
from api.http.openapi import RequestBody, form_schema
from api.live.outcome import wait_for_outcome
from api.services.rate_limiter import too_many
from api.services.relay import Subscription
from api.writes.commit_check import create_with_file
from core import ids
from core.api_keys import Scope
from core.errors import SERVER_ERROR, ApiError, Problem, bad_request, unavailable
from core.failpoints import Point, failpoint
from core.files.file_store import FileStore
from core.schemas.base import parse_body
from core.schemas.batch_validation import BatchValidate, BatchValidation, check_endpoint
from core.settings import Settings
from db import files, validations

router = APIRouter(tags=["batches"], dependencies=[require_scopes(Scope.INFERENCE)])  # has its own body limit

_MAX_WAITING: Final = 4  # of a tenant: each is a process, and delays the preparation of a batch
_RETRY_SECONDS: Final = 5.0
_KEPT: Final = timedelta(hours=1)  # files and rows of a process that crashed


class _Input(NamedTuple):
    file_id: str
    endpoint: str | None


async def read_input(
    request: Request, database: DatabaseDep, file_store: FilesDep, settings: SettingsDep, tenant: TenantDep
) -> AsyncIterator[_Input]:
    """The file to check; an uploaded one is deleted afterwards."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        body = parse_body(BatchValidate, await read_small_json(request, settings.body_bytes))
        await check_input(database, body.input_file_id, tenant)
        yield _Input(body.input_file_id, body.endpoint)
        return
    async with open_form(request) as form:
        endpoint = _form_endpoint(form)
        file_id = await _store_file(form, database, file_store, settings, tenant)
    try:
        yield _Input(file_id, endpoint)
    finally:
        async with database.begin() as connection:
            await connection.execute(files.hide_file(file_id, tenant))


_FORM: Final = form_schema({"file": BINARY}, {"endpoint": {"type": "string"}, "purpose": {"const": "batch"}})
InputDep = Annotated[
    _Input,
    Depends(read_input, scope="function"),
    RequestBody({"multipart/form-data": _FORM, JSON: BatchValidate}),
]


@router.post("/v1/batches/validate")
async def validate_batch(
    request: Request,
    source: InputDep,
    database: DatabaseDep,
    relay: RelayDep,
    tickets: TicketsDep,
    settings: SettingsDep,
    tenant: TenantDep,
    caller: CallerDep,
) -> BatchValidation:
    """All errors of a file at once, its lines and tokens by model, and an estimate from recent batches."""
    validation_id = ids.new_id(ids.VALIDATION)
    async with relay.follow(validation_id, caller.key_id) as subscription:
        await _insert(database, validation_id, source, tenant)
        try:
            failpoint(Point.VALIDATION_ASKED)
            await tickets.send(lambda tickets: tickets.validate(validation_id))
            report = await _report(request, database, subscription, settings.chat_timeout_seconds)
        finally:
            async with database.begin() as connection:
                await connection.execute(validations.delete_validation(validation_id))
    async with database.connect() as connection:
        work = {each.model: await recent_work(connection, each.model) for each in report.models}
    return report.model_copy(update={"estimate": estimate(report.models, work)})


def _form_endpoint(form: FormData) -> str | None:
    endpoint = form.get("endpoint")
    try:
        return check_endpoint(str(endpoint) if endpoint is not None else None)
    except ValueError as error:
        message = f"Invalid value for 'endpoint': {error}."
        raise bad_request(message, code="invalid_value", param="endpoint") from None


async def _store_file(
    form: FormData, database: AsyncEngine, file_store: FileStore, settings: Settings, tenant: str
) -> str:
    """Store the upload as a file of the tenant, for as long as it is checked; return its id."""
    if "purpose" not in form:
        form = FormData([*form.multi_items(), ("purpose", "batch")])
    upload = check_upload(form, settings)
    if upload.purpose != "batch":
        message = "Invalid value for 'purpose': only 'batch' files can be validated."
        raise bad_request(message, code="invalid_file_purpose", param="purpose")
    file_id = ids.new_id(ids.FILE)
    await store(upload.content.file, file_store, file_id)
    statement = files.add_file(
        id=file_id,
        tenant_id=tenant,
        purpose=upload.purpose,
        filename=upload.filename,
        bytes=upload.size,
        expires_at=datetime.now(UTC) + _KEPT,
    )

    async def insert() -> str:
        async with database.begin() as connection:
            await connection.execute(statement)
        return file_id

    async def find() -> str | None:
        async with database.connect() as connection:
            return (await connection.execute(files.known_files([file_id]))).scalar_one_or_none()

    return await create_with_file(file_store, file_id, insert, find)


async def _insert(database: AsyncEngine, validation_id: str, source: _Input, tenant: str) -> None:
    """Insert the row of a validation, or raise the 429 of a tenant with too many."""
    statement = validations.insert_validation(
        id=validation_id, tenant_id=tenant, file_id=source.file_id, endpoint=source.endpoint
    )
    async with database.begin() as connection:
        await connection.execute(validations.delete_old_validations(_KEPT))
        if (await connection.execute(validations.count_open(tenant))).scalar_one() >= _MAX_WAITING:
            message = f"{_MAX_WAITING} validations are waiting already. Ask again when one of them is answered."
            raise too_many("validations", message, _RETRY_SECONDS)
        await connection.execute(statement)


async def _report(
    request: Request, database: AsyncEngine, subscription: Subscription, timeout_seconds: float
) -> BatchValidation:
    """The clerk's report; raises a 500 when the file could not be checked, and a 503 without an answer in time."""

    async def read() -> BatchValidation | None:
        async with database.connect() as connection:
            report, failure = await validations.find_result(subscription.job_id).async_fetch_one(connection)
        if failure is not None:
            raise ApiError(Problem(status=500, message=failure, type=SERVER_ERROR, code="validation_failed"))
        return None if report is None else BatchValidation.model_validate_json(report)

    try:
        report = await unless_disconnected(request, wait_for_outcome(subscription, read, timeout_seconds))
    except TimeoutError:
        raise unavailable("No clerk has looked at the file yet. Is one running?") from None
    if report is None:
        raise unavailable("The client has left.")
    return report
