"""`POST /v1/batches/validate`: everything wrong with a file, its tokens and how long it may take; nothing is run.

The file is uploaded with the question, or named. A clerk looks at it; the question is a row, and so is the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from fastapi import FastAPI, Request
from starlette.datastructures import FormData

from api.access.scopes import require_scopes
from api.batches.estimates import estimate, recent_work
from api.dependencies import AppState, StateDep, TenantDep, caller_of
from api.files.lookup import check_input
from api.files.multipart import check_upload, read_form, store
from api.http.event_stream import unless_disconnected
from api.http.json_body import read_wire
from api.http.openapi import request_docs
from api.live.outcome import wait_for_outcome
from api.services.rate_limiter import too_many
from api.services.relay import Subscription
from api.writes.commit_check import make_with_file
from core import ids
from core.api_keys import Scope
from core.errors import SERVER_ERROR, ApiError, Problem, bad_request, unavailable
from core.failpoints import Point, failpoint
from core.schemas.batch_validation import BatchValidate, BatchValidation, check_endpoint
from core.settings import Settings
from db import files, validations

_FORM_OVERHEAD: Final = 1 << 16
_MOST_WAITING: Final = 4  # of a tenant: each is a process, and takes the place of a batch that is to be prepared
_RETRY_SECONDS: Final = 5.0
_KEPT: Final = timedelta(hours=1)  # what a process that died left behind


_FORM: Final = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "endpoint": {"type": "string"},
        "purpose": {"const": "batch"},
    },
    "required": ["file"],
}
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "application/json": request_docs(BatchValidate)["requestBody"]["content"]["application/json"],
        },
    }
}


class _Question(NamedTuple):
    file_id: str
    endpoint: str | None


def add_validation_route(app: FastAPI, settings: Settings) -> None:
    """The upload's body limit is a setting, so the route is made with the app."""
    limit = settings.batch_file_bytes + _FORM_OVERHEAD
    register = app.post(
        "/v1/batches/validate",
        tags=["batches"],
        max_body_size=limit,
        openapi_extra=_BODY,
        dependencies=[require_scopes(Scope.INFERENCE)],
    )
    register(validate_batch)


async def validate_batch(request: Request, state: StateDep, tenant: TenantDep) -> BatchValidation:
    """All errors of a file at once, its lines and tokens by model, and an estimate from recent batches."""
    async with _asked(request, state, tenant) as question:
        report = await _ask_clerk(request, state, tenant, question)
    async with state.database.connect() as connection:
        work = {each.model: await recent_work(connection, each.model) for each in report.models}
    return report.model_copy(update={"estimate": estimate(report.models, work)})


@asynccontextmanager
async def _asked(request: Request, state: AppState, tenant: str) -> AsyncIterator[_Question]:
    """What is asked, and the file while it is looked at."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        body = await read_wire(request, BatchValidate)
        await check_input(state, body.input_file_id, tenant)
        yield _Question(body.input_file_id, body.endpoint)
        return
    form = await read_form(request)
    try:
        endpoint = _form_endpoint(form)
        file_id = await _keep(form, state, tenant)
    finally:
        await form.close()
    try:
        yield _Question(file_id, endpoint)
    finally:
        async with state.database.begin() as connection:
            await connection.execute(files.hide_file(file_id, tenant))


def _form_endpoint(form: FormData) -> str | None:
    endpoint = form.get("endpoint")
    try:
        return check_endpoint(str(endpoint) if endpoint is not None else None)
    except ValueError as error:
        message = f"Invalid value for 'endpoint': {error}."
        raise bad_request(message, code="invalid_value", param="endpoint") from None


async def _keep(form: FormData, state: AppState, tenant: str) -> str:
    """Store the upload for as long as it is looked at, as a file of the tenant."""
    if "purpose" not in form:
        form = FormData([*form.multi_items(), ("purpose", "batch")])
    upload = check_upload(form, state)
    if upload.purpose != "batch":
        message = "Invalid value for 'purpose': only 'batch' files can be validated."
        raise bad_request(message, code="invalid_file_purpose", param="purpose")
    file_id = ids.new_id(ids.FILE)
    await store(upload.content, state, file_id)
    statement = files.add_file(
        id=file_id,
        tenant_id=tenant,
        purpose=upload.purpose,
        filename=upload.filename,
        bytes=upload.size,
        expires_at=datetime.now(UTC) + _KEPT,
    )

    async def insert() -> str:
        async with state.database.begin() as connection:
            await connection.execute(statement)
        return file_id

    async def find() -> str | None:
        async with state.database.connect() as connection:
            return (await connection.execute(files.known_files([file_id]))).scalar_one_or_none()

    return await make_with_file(state, file_id, insert, find)


async def _ask_clerk(request: Request, state: AppState, tenant: str, question: _Question) -> BatchValidation:
    """Insert a validation, send its ticket, and wait for the report; the row is deleted however the wait ends."""
    validation_id = ids.new_id(ids.VALIDATION)
    statement = validations.insert_validation(
        id=validation_id, tenant_id=tenant, file_id=question.file_id, endpoint=question.endpoint
    )
    async with state.relay.follow(validation_id, caller_of(request).key_id) as subscription:
        async with state.database.begin() as connection:
            await connection.execute(validations.delete_old_validations(_KEPT))
            if (await connection.execute(validations.count_open(tenant))).scalar_one() >= _MOST_WAITING:
                message = f"{_MOST_WAITING} validations are waiting already. Ask again when one of them is answered."
                raise too_many("validations", message, _RETRY_SECONDS)
            await connection.execute(statement)
        try:
            failpoint(Point.VALIDATION_ASKED)
            await state.sender.send(lambda: state.sender.tickets.validate(validation_id))
            return await _report(request, state, subscription)
        finally:
            async with state.database.begin() as connection:
                await connection.execute(validations.delete_validation(validation_id))


async def _report(request: Request, state: AppState, subscription: Subscription) -> BatchValidation:
    """The clerk's report; raises a 500 when the file could not be checked, and a 503 without an answer in time."""

    async def read() -> BatchValidation | None:
        async with state.database.connect() as connection:
            report, failure = await validations.find_result(subscription.job_id).async_fetch_one(connection)
        if failure is not None:
            raise ApiError(Problem(status=500, message=failure, type=SERVER_ERROR, code="validation_failed"))
        return None if report is None else BatchValidation.model_validate_json(report)

    try:
        waiting = wait_for_outcome(subscription, read, state.settings.chat_timeout_seconds)
        report = await unless_disconnected(request, waiting)
    except TimeoutError:
        raise unavailable("No clerk has looked at the file yet. Is one running?") from None
    if report is None:
        raise unavailable("The client has left.")
    return report
