"""Tables in and out: `POST /v1/batches/map` makes a batch from a table, `GET /v1/batches/{id}/table` a table from its answers.

Tables are read, and templates rendered, in child processes (`api.tables.table_processes`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from tempfile import TemporaryFile
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api.access.admission import AdmissionDep
from api.access.scopes import require_scopes
from api.batches.estimates import estimate, recent_work
from api.batches.lookup import existing_batch, show_batch, to_batch_object
from api.dependencies import CallerDep, DatabaseDep, FilesDep, ModelStatesDep, SettingsDep, TenantDep, TicketsDep
from api.files.lookup import attachment
from api.files.multipart import BINARY
from api.http.event_stream import ByteStream, unless_disconnected
from api.http.json_body import JSON
from api.http.openapi import RequestBody
from api.schemas.batch_tables import BatchMap, BatchMapPreview, MapPreview
from api.tables.answers import find_answers, write_answers
from api.tables.mapped_batch import BatchWriterDep
from api.tables.mapped_requests import MapperDep
from api.tables.table_input import MAP_FORM, PREVIEW_FORM, TableInput, open_table_input
from api.tables.table_processes import TableProcessesDep
from api.writes.idempotency import CreateOnceDep
from core import ids
from core.api_keys import Scope, estimated_tokens
from core.errors import not_found, unavailable
from core.failpoints import Point, failpoint
from core.schemas.batch_validation import ModelLines
from core.schemas.objects import BatchObject
from db import batches
from mapping.spec import MapSpec

_MEDIA_TYPES: Final = {
    "csv": "text/csv",  # without a charset: the table of a mapped batch keeps its own
    "tsv": "text/tab-separated-values",
    "jsonl": "application/jsonl",
    "parquet": "application/vnd.apache.parquet",
}
_TABLE: Final[dict[int | str, dict[str, Any]]] = {  # Any: pieces of an OpenAPI document
    200: {
        "description": "The table.",
        "content": {media_type: {"schema": BINARY} for media_type in _MEDIA_TYPES.values()},
    }
}
router = APIRouter(tags=["batch tables"], dependencies=[require_scopes(Scope.INFERENCE)])  # has its own body limit


async def read_map(
    request: Request, database: DatabaseDep, file_store: FilesDep, settings: SettingsDep, tenant: TenantDep
) -> AsyncIterator[TableInput[BatchMap]]:
    """The table to map, open until the endpoint returns."""
    async with open_table_input(BatchMap, request, database, file_store, settings, tenant) as source:
        yield source


async def read_preview(
    request: Request, database: DatabaseDep, file_store: FilesDep, settings: SettingsDep, tenant: TenantDep
) -> AsyncIterator[TableInput[BatchMapPreview]]:
    """The same for a preview."""
    async with open_table_input(BatchMapPreview, request, database, file_store, settings, tenant) as source:
        yield source


MapDep = Annotated[
    TableInput[BatchMap],
    Depends(read_map, scope="function"),
    RequestBody({"multipart/form-data": MAP_FORM, JSON: BatchMap}),
]
PreviewDep = Annotated[
    TableInput[BatchMapPreview],
    Depends(read_preview, scope="function"),
    RequestBody({"multipart/form-data": PREVIEW_FORM, JSON: BatchMapPreview}),
]


@router.post("/v1/batches/map/preview")
async def preview_map(source: PreviewDep, mapper: MapperDep, database: DatabaseDep) -> MapPreview:
    """The first requests that a table becomes, their number, tokens and time; nothing is stored or run."""
    found = await mapper.map(source, sample=source.options.sample)
    prompt_tokens = estimated_tokens(found.summary.prompt_bytes)
    preview = MapPreview(
        **{
            name: value for name, value in msgspec.to_builtins(found.summary).items() if name in MapPreview.model_fields
        },
        prompt_tokens=prompt_tokens,
        max_output_tokens=found.max_output_tokens,
    )
    if found.model is None or source.options.mapping is None or not preview.requests:
        return preview
    lines = ModelLines(
        model=found.model.name,
        lines=preview.requests,
        prompt_tokens=prompt_tokens,
        max_output_tokens=found.max_output_tokens,
    )
    async with database.connect() as connection:
        work = await recent_work(connection, lines.model)
    expected = estimate([lines], {lines.model: work})
    return preview.model_copy(update={"model": source.options.mapping.model, "estimate": expected})


@router.post("/v1/batches/map")
async def map_table(
    request: Request,
    source: MapDep,
    mapper: MapperDep,
    writer: BatchWriterDep,
    tenant: TenantDep,
    caller: CallerDep,
    admission: AdmissionDep,
    database: DatabaseDep,
    tickets: TicketsDep,
    states: ModelStatesDep,
    create_once: CreateOnceDep,
) -> BatchObject:
    """Make a batch from the rows of a table, which is kept for as long as the results."""

    async def find(batch_id: str) -> BatchObject:
        async with database.connect() as connection:
            return await show_batch(connection, await existing_batch(connection, batch_id, tenant), states)

    async def create(batch_id: str) -> BatchObject:
        with TemporaryFile() as lines:
            mapped = await mapper.map(source, output=lines)
            await admission.charge_batch(request, caller)
            assert mapped.summary.endpoint is not None, "it has a mapping"
            row = await writer.create(batch_id, source, mapped.summary.endpoint, lines)
        await tickets.send(lambda tickets: tickets.prepare(row.id))
        failpoint(Point.BATCH_TICKETED)
        return to_batch_object(row, None)

    return await create_once(ids.BATCH, find=find, create=create, body_digest=source.digest)


@router.get("/v1/batches/{batch_id}/mapping", response_model_exclude_unset=True)
async def get_mapping(batch_id: str, database: DatabaseDep, tenant: TenantDep) -> MapSpec:
    """The mapping that a batch was made with, which makes the same of another table."""
    async with database.connect() as connection:
        await existing_batch(connection, batch_id, tenant)
        mapping = (await connection.execute(batches.mapping_of(batch_id))).scalar_one()
    if mapping is None:
        raise not_found("The batch was not mapped from a table.", param="batch_id")
    return MapSpec.model_validate_json(mapping)


@router.get("/v1/batches/{batch_id}/table", response_class=Response, responses=_TABLE)
async def get_table(
    request: Request,
    batch_id: str,
    database: DatabaseDep,
    file_store: FilesDep,
    processes: TableProcessesDep,
    settings: SettingsDep,
    tenant: TenantDep,
    kind: Annotated[Literal["csv", "tsv", "jsonl", "parquet"], Query(alias="format")] = "csv",
    outcome: Literal["completed", "failed"] | None = None,
) -> Response:
    """The answers so far: as new columns of the table that was mapped, else one row for each line."""
    async with database.connect() as connection:
        table = await find_answers(connection, await existing_batch(connection, batch_id, tenant))
    chunks = write_answers(
        table,
        kind,
        outcome,
        database=database,
        file_store=file_store,
        processes=processes,
        max_bytes=settings.upload_bytes,
    )

    async def first_chunk() -> bytes:
        return await anext(chunks, b"")

    first = await unless_disconnected(request, first_chunk())  # an error before it gets a status of its own
    if first is None:
        raise unavailable("The client has left.")
    media_type = _MEDIA_TYPES[kind]
    headers = {"content-disposition": attachment(f"{table.stem}.{kind}"), "content-type": media_type}
    return ByteStream(_from_first(first, chunks), headers, media_type)


async def _from_first(first: bytes, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk
