"""`GET /v1/chat/completions` and below: chat completions that were created with `store: true`."""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from sqlalchemy.ext.asyncio import AsyncEngine

from api.access.scopes import require_scopes
from api.dependencies import CatalogDep, DatabaseDep, TenantDep
from api.http.json_body import JsonBody
from api.http.metadata_filter import METADATA_PARAMETER, MetadataDep
from api.http.pagination import check_cursor, page, page_of_list
from api.schemas.stored_chats import (
    DeletedChatCompletion,
    StoredChatCompletion,
    StoredChatUpdate,
    StoredMessage,
    stored_messages,
)
from core import ids
from core.api_keys import Scope
from core.errors import bad_request, not_found
from core.schemas.objects import ListObject
from db import stored_chats
from db.stored_chats import StoredChatRow

router = APIRouter(tags=["chat"], dependencies=[require_scopes(Scope.INFERENCE)])

_TEXT: Final = r"^[^\x00]*$"


@router.get("/v1/chat/completions", openapi_extra=METADATA_PARAMETER)
async def list_chat_completions(
    metadata: MetadataDep,
    database: DatabaseDep,
    catalog: CatalogDep,
    tenant: TenantDep,
    model: Annotated[str | None, Query(max_length=256, pattern=_TEXT)] = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "asc",
) -> ListObject[StoredChatCompletion]:
    """Oldest first, or newest first with `order=desc`; `metadata[key]=value` selects by metadata."""
    check_cursor(after, ids.CHAT)
    served = [each.name for each in catalog.called(model)] if model is not None else []
    statement = stored_chats.list_stored_chats(
        tenant,
        models=None if model is None else served or [model],
        metadata=metadata,
        after=after,
        limit=limit + 1,
        newest_first=order == "desc",
    )
    async with database.connect() as connection:
        rows = await statement.async_fetch_all(connection)
    return page([_to_object(row) for row in rows], limit)


@router.get("/v1/chat/completions/{completion_id}")
async def get_chat_completion(completion_id: str, database: DatabaseDep, tenant: TenantDep) -> StoredChatCompletion:
    """A kept chat completion."""
    return _to_object(await _find(database, completion_id, tenant))


@router.post("/v1/chat/completions/{completion_id}")
async def update_chat_completion(
    completion_id: str, change: JsonBody[StoredChatUpdate], database: DatabaseDep, tenant: TenantDep
) -> StoredChatCompletion:
    """Replace the metadata."""
    await _find(database, completion_id, tenant)
    if "metadata" not in change.model_fields_set:
        message = "Missing required parameter: 'metadata'."
        raise bad_request(message, code="missing_required_parameter", param="metadata")
    async with database.begin() as connection:
        await connection.execute(stored_chats.set_chat_metadata(completion_id, tenant, change.metadata or {}))
    return _to_object(await _find(database, completion_id, tenant))


@router.delete("/v1/chat/completions/{completion_id}")
async def delete_chat_completion(completion_id: str, database: DatabaseDep, tenant: TenantDep) -> DeletedChatCompletion:
    """Delete a chat completion with its request and answer."""
    await _find(database, completion_id, tenant)
    async with database.begin() as connection:
        await connection.execute(stored_chats.delete_stored_chat(completion_id, tenant))
    return DeletedChatCompletion(id=completion_id)


@router.get("/v1/chat/completions/{completion_id}/messages")
async def list_chat_messages(
    completion_id: str,
    database: DatabaseDep,
    tenant: TenantDep,
    after: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "asc",
) -> ListObject[StoredMessage]:
    """The messages of the request, in their order, or the last one first with `order=desc`."""
    row = await _find(database, completion_id, tenant)
    messages = stored_messages(row.id, json.loads(row.body).get("messages"))
    return page_of_list(messages[::-1] if order == "desc" else messages, after, limit)


async def _find(database: AsyncEngine, completion_id: str, tenant: str) -> StoredChatRow:
    """The row of a tenant's chat completion; raises one and the same 404 for unknown, unkept and foreign ids."""
    if ids.has_prefix(completion_id, ids.CHAT):
        async with database.connect() as connection:
            row = await stored_chats.find_stored_chat(completion_id, tenant).async_fetch_optional(connection)
        if row is not None:
            return row
    message = f"There is no stored chat completion '{completion_id[:64]}'. Create it with 'store': true to keep it."
    raise not_found(message, param="completion_id")


def _to_object(row: StoredChatRow) -> StoredChatCompletion:
    return StoredChatCompletion(**json.loads(row.answer), metadata=json.loads(row.metadata_json))
