"""`/v1/batches`: create, get, list, cancel."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request

from api.access.admission import AdmissionDep, check_open_batches
from api.access.scopes import require_scopes
from api.batches.lookup import existing_batch, show_batch, to_batch_object, with_totals
from api.dependencies import CallerDep, DatabaseDep, ModelStatesDep, TenantDep, TicketsDep
from api.files.lookup import check_input
from api.http.json_body import JsonBody
from api.http.metadata_filter import METADATA_PARAMETER, MetadataDep
from api.http.pagination import check_cursor, page
from api.http.request_log import current_origin, note_ids
from api.writes.idempotency import CreateOnceDep
from core import ids
from core.api_keys import Scope
from core.errors import bad_request
from core.failpoints import Point, failpoint
from core.schemas.batch import BatchCreate
from core.schemas.objects import BatchObject, ListObject
from core.states import BatchState
from db import batch_lists, batches
from db.batch_lists import BatchFilter
from db.connections import async_transaction

router = APIRouter(tags=["batches"], dependencies=[require_scopes(Scope.INFERENCE)])

_TEXT: Final = r"^[^\x00]*$"
_Status = Literal[
    "validating", "in_progress", "paused", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]


@router.post("/v1/batches")
async def create_batch(
    request: Request,
    body: JsonBody[BatchCreate],
    tenant: TenantDep,
    caller: CallerDep,
    admission: AdmissionDep,
    database: DatabaseDep,
    tickets: TicketsDep,
    states: ModelStatesDep,
    create_once: CreateOnceDep,
) -> BatchObject:
    """Accept a file's lines; a clerk checks them right after."""

    async def create(batch_id: str) -> BatchObject:
        note_ids(file=body.input_file_id)
        await check_input(database, body.input_file_id, tenant)
        await admission.charge_batch(request, caller)
        statement = batches.insert_batch(
            id=batch_id,
            tenant_id=tenant,
            key_id=caller.key_id,
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            origin_json=current_origin().to_json(),
            **body.columns(),
        )
        async with async_transaction(
            database, committing=Point.BATCH_INSERTED, committed=Point.BATCH_COMMITTED
        ) as connection:
            await check_open_batches(connection, tenant)
            row = await statement.async_fetch_one(connection)
        await tickets.send(lambda tickets: tickets.prepare(row.id))
        failpoint(Point.BATCH_TICKETED)
        return to_batch_object(row, None)

    return await create_once(
        ids.BATCH, find=lambda batch_id: get_batch(batch_id, database, tenant, states), create=create
    )


@router.get("/v1/batches", openapi_extra=METADATA_PARAMETER)
async def list_batches(
    database: DatabaseDep,
    tenant: TenantDep,
    states: ModelStatesDep,
    metadata: MetadataDep,
    status: Annotated[list[_Status], Query(max_length=100)] = [],  # noqa: B006
    model: Annotated[str | None, Query(max_length=256, pattern=_TEXT)] = None,
    q: Annotated[str | None, Query(max_length=256, pattern=_TEXT)] = None,
    parent_batch_id: Annotated[str | None, Query(max_length=64, pattern=_TEXT)] = None,
    file_id: Annotated[str | None, Query(max_length=256, pattern=_TEXT)] = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListObject[BatchObject]:
    """Newest first: those of any given `status`, with lines of the `model`, with `q` in id, name or file name, with the
    metadata, the retries of a batch, and those with this file as input, output or errors."""
    check_cursor(after, ids.BATCH)
    wanted = BatchFilter(
        statuses=[BatchState(each) for each in status if each != "paused"],
        is_paused="paused" in status,
        model=model,
        text=q,
        metadata=metadata,
        parent_id=parent_batch_id,
        file_id=file_id,
    )
    async with database.connect() as connection:
        rows = await batch_lists.list_batches(tenant, wanted, after=after, limit=limit + 1).async_fetch_all(connection)
        objects = await with_totals(connection, rows, states)
    return page(objects, limit)


@router.get("/v1/batches/{batch_id}")
async def get_batch(batch_id: str, database: DatabaseDep, tenant: TenantDep, states: ModelStatesDep) -> BatchObject:
    """The batch, with its counts as of now."""
    async with database.connect() as connection:
        return await show_batch(connection, await existing_batch(connection, batch_id, tenant), states)


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(
    batch_id: str, database: DatabaseDep, tickets: TicketsDep, tenant: TenantDep, states: ModelStatesDep
) -> BatchObject:
    """Take no further lines; finished ones are kept. A second call changes nothing."""
    async with async_transaction(
        database, committing=Point.BATCH_CANCELLING, committed=Point.BATCH_CANCELLED
    ) as connection:
        await existing_batch(connection, batch_id, tenant)
        moved = await batches.move(batch_id, BatchState.CANCELLING).async_fetch_optional(connection)
        row = await existing_batch(connection, batch_id, tenant)
        if moved is None and row.status not in (BatchState.CANCELLING, BatchState.CANCELLED):
            message = f"The batch is {row.status}; only a running one can be cancelled."
            raise bad_request(message, code="batch_not_cancellable")
        is_ready_to_finalize = (await connection.execute(batches.is_ready_to_finalize(batch_id))).scalar_one()
        shown = await show_batch(connection, row, states)
    if is_ready_to_finalize:
        await tickets.send(lambda tickets: tickets.finalize(batch_id))
    return shown
