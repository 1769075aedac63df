"""`/v1/webhook_endpoints`: the official client's `webhooks` resource. Only a clerk sends webhooks, never this process."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.access.scopes import require_scopes
from api.dependencies import CallerDep, DatabaseDep, RelayDep, SettingsDep, TenantDep, TicketsDep
from api.http.json_body import JsonBody, OptionalJsonBody
from api.http.pagination import check_cursor, page, unix_seconds
from api.live.outcome import wait_for_outcome
from api.services.relay import Subscription
from core import ids
from core.api_keys import Scope
from core.errors import ApiError, Problem, bad_request, not_found, unavailable
from core.ids import is_id
from core.schemas.objects import DeletedObject, ListObject
from core.schemas.responses.objects import RESPONSE
from core.schemas.webhooks import (
    EVENT_TYPES,
    DeliveryState,
    EventSubject,
    WebhookCreate,
    WebhookDeliveryObject,
    WebhookEndpointList,
    WebhookEndpointObject,
    WebhookEndpointWithSecret,
    WebhookEvent,
    WebhookEventTypeList,
    WebhookRotate,
    WebhookTest,
    WebhookTestResult,
    WebhookUpdate,
)
from core.settings import Settings
from core.url_guard import UrlRefused, url_guard
from db import webhooks
from db.webhooks import DeliveryRow, WebhookRow

router = APIRouter(tags=["webhooks"], dependencies=[require_scopes(Scope.ADMIN)])

_MAX_ENDPOINTS: Final = 20
_RESOLVE_SECONDS: Final = 5.0
_OVERLAP: Final = timedelta(hours=24)
_TEST_SECONDS: Final = 20.0
_resolvers: Final = ThreadPoolExecutor(4, "resolve")


@router.post("/v1/webhook_endpoints")
async def create_webhook(
    body: JsonBody[WebhookCreate], database: DatabaseDep, settings: SettingsDep, tenant: TenantDep
) -> WebhookEndpointWithSecret:
    """Create an endpoint; only this response and that of a rotation have the secret."""
    await _check_url(settings, body.url)
    secret = _new_secret()
    statement = webhooks.insert_webhook(
        id=ids.new_id(ids.WEBHOOK),
        tenant_id=tenant,
        name=body.name,
        url=body.url,
        secret=secret,
        events=",".join(body.event_types),
    )
    async with database.begin() as connection:
        if (await connection.execute(webhooks.count_webhooks(tenant))).scalar_one() >= _MAX_ENDPOINTS:
            message = f"There can be {_MAX_ENDPOINTS} webhook endpoints; delete one first."
            raise bad_request(message, code="too_many_webhook_endpoints")
        row = await statement.async_fetch_one(connection)
    return _with_secret(row, secret)


@router.get("/v1/webhook_endpoints")
async def list_webhooks(
    database: DatabaseDep,
    tenant: TenantDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> WebhookEndpointList:
    """Newest first."""
    check_cursor(after, ids.WEBHOOK)
    async with database.connect() as connection:
        rows = await webhooks.list_webhooks(tenant, after=after, limit=limit + 1).async_fetch_all(connection)
    shown = [_to_object(row) for row in rows[:limit]]
    return WebhookEndpointList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(rows) > limit,
    )


@router.get("/v1/webhook_event_types")
async def list_event_types(_: TenantDep) -> WebhookEventTypeList:
    """The event types that an endpoint can subscribe to."""
    return WebhookEventTypeList(data=list(EVENT_TYPES))


@router.get("/v1/webhook_endpoints/{webhook_endpoint_id}")
async def get_webhook(webhook_endpoint_id: str, database: DatabaseDep, tenant: TenantDep) -> WebhookEndpointObject:
    """The endpoint, with the state of its deliveries."""
    async with database.connect() as connection:
        row = await _find(connection, webhook_endpoint_id, tenant)
    return _to_object(_existing(row, webhook_endpoint_id))


@router.post("/v1/webhook_endpoints/{webhook_endpoint_id}")
async def update_webhook(
    webhook_endpoint_id: str,
    body: JsonBody[WebhookUpdate],
    database: DatabaseDep,
    settings: SettingsDep,
    tenant: TenantDep,
) -> WebhookEndpointObject:
    """Change the fields sent. Pending events go to the new url."""
    async with database.connect() as connection:
        _existing(await _find(connection, webhook_endpoint_id, tenant), webhook_endpoint_id)
    columns = {"name": body.name, "url": body.url, "events": ",".join(body.event_types or ()) or None}
    if body.url is not None:
        await _check_url(settings, body.url)
    changes = {name: value for name, value in columns.items() if value is not None}
    async with database.begin() as connection:
        statement = webhooks.change_webhook(webhook_endpoint_id, tenant, **changes)
        row = await statement.async_fetch_optional(connection)
    return _to_object(_existing(row, webhook_endpoint_id))


@router.delete("/v1/webhook_endpoints/{webhook_endpoint_id}")
async def delete_webhook(webhook_endpoint_id: str, database: DatabaseDep, tenant: TenantDep) -> DeletedObject:
    """Delete the endpoint; pending deliveries are dropped."""
    async with database.begin() as connection:
        _existing(await _find(connection, webhook_endpoint_id, tenant), webhook_endpoint_id)
        await connection.execute(webhooks.delete_webhook(webhook_endpoint_id, tenant))
    return DeletedObject(id=webhook_endpoint_id, object="webhook_endpoint.deleted")


@router.post("/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret")
async def rotate_secret(
    webhook_endpoint_id: str, body: OptionalJsonBody[WebhookRotate], database: DatabaseDep, tenant: TenantDep
) -> WebhookEndpointWithSecret:
    """Replace the secret from the next attempt on; the old one also signs for a day if requested."""
    secret = _new_secret()
    overlap = _OVERLAP if body.keep_old_secret_active_for_24_hours else None
    async with database.begin() as connection:
        row = await _find(connection, webhook_endpoint_id, tenant)
        if row is not None:
            statement = webhooks.rotate_secret(webhook_endpoint_id, tenant, secret, overlap=overlap)
            row = await statement.async_fetch_optional(connection)
    return _with_secret(_existing(row, webhook_endpoint_id), secret)


@router.post("/v1/webhook_endpoints/{webhook_endpoint_id}/test")
async def test_webhook(
    webhook_endpoint_id: str,
    body: JsonBody[WebhookTest],
    database: DatabaseDep,
    relay: RelayDep,
    tickets: TicketsDep,
    tenant: TenantDep,
    caller: CallerDep,
) -> WebhookTestResult:
    """Have a clerk send a sample event, and return the status of the receiver's response."""
    subject = EventSubject(id=ids.new_id(RESPONSE if body.event_type.startswith("response.") else ids.BATCH))
    event = WebhookEvent(id=ids.new_id(ids.EVENT), type=body.event_type, created_at=int(time.time()), data=subject)
    async with relay.follow(event.id, caller.key_id) as subscription:
        async with database.begin() as connection:
            _existing(await _find(connection, webhook_endpoint_id, tenant), webhook_endpoint_id)
            await connection.execute(
                webhooks.record_test(webhook_endpoint_id, tenant, event.id, event.type, event.model_dump_json())
            )
        await tickets.send(lambda tickets: tickets.deliver(event.id))
        status_code = await _test_status(database, webhook_endpoint_id, subscription)
    return WebhookTestResult(
        webhook_endpoint_id=webhook_endpoint_id, event_type=body.event_type, status_code=status_code
    )


@router.get("/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries")
async def list_deliveries(
    webhook_endpoint_id: str,
    database: DatabaseDep,
    tenant: TenantDep,
    state: DeliveryState | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListObject[WebhookDeliveryObject]:
    """Newest first, tests included; those that ended more than a week ago are deleted."""
    check_cursor(after, ids.EVENT)
    statement = webhooks.list_deliveries(webhook_endpoint_id, state=state, after=after, limit=limit + 1)
    async with database.connect() as connection:
        _existing(await _find(connection, webhook_endpoint_id, tenant), webhook_endpoint_id)
        rows = await statement.async_fetch_all(connection)
    return page([_to_delivery(row) for row in rows], limit)


async def _test_status(database: AsyncEngine, webhook_id: str, subscription: Subscription) -> int:
    """The status of the receiver's response to a test; raises a 400 without one, and a 503 when no clerk sends it in time."""

    async def read() -> int | None:
        async with database.connect() as connection:
            row = await webhooks.test_result(webhook_id, subscription.job_id).async_fetch_optional(connection)
        if row is None:
            raise _missing(webhook_id)
        if row.finished_at is not None and row.status_code is None:
            raise bad_request(f"The test was not answered. {row.last_error}", code="webhook_delivery_failed")
        return None if row.finished_at is None else row.status_code

    try:
        return await wait_for_outcome(subscription, read, _TEST_SECONDS)
    except TimeoutError:
        raise unavailable("No clerk has sent the test yet; it will be sent when one is there.") from None


async def _check_url(settings: Settings, url: str) -> None:
    """Raise the 4xx of a url that every delivery would refuse."""
    guard = url_guard(settings)
    if not guard.hosts:
        message = "Webhooks are off on this server: its operator has named no hosts that they may be sent to."
        raise ApiError(Problem(status=403, message=message, code="webhooks_disabled"))
    loop = asyncio.get_running_loop()
    try:
        resolving = loop.run_in_executor(_resolvers, guard.resolve, guard.parse(url))
        await asyncio.wait_for(resolving, _RESOLVE_SECONDS)
    except UrlRefused as refused:
        raise bad_request(f"Invalid value for 'url': {refused}", code="invalid_value", param="url") from None
    except TimeoutError:
        raise unavailable("The name service does not answer. Try again shortly.") from None


async def _find(connection: AsyncConnection, webhook_id: str, tenant: str) -> WebhookRow | None:
    if not is_id(webhook_id):
        return None
    return await webhooks.find_webhook(webhook_id, tenant).async_fetch_optional(connection)


def _existing(row: WebhookRow | None, webhook_id: str) -> WebhookRow:
    if row is None:
        raise _missing(webhook_id)
    return row


def _missing(webhook_id: str) -> ApiError:
    return not_found(f"There is no webhook endpoint '{webhook_id[:64]}'.", param="webhook_endpoint_id")


def _new_secret() -> str:
    """A secret of 256 bits, in the format of Standard Webhooks."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _to_object(row: WebhookRow) -> WebhookEndpointObject:
    return WebhookEndpointObject(
        id=row.id,
        created_at=unix_seconds(row.created_at) or 0,
        updated_at=unix_seconds(row.updated_at) or 0,
        name=row.name,
        url=row.url,
        event_types=row.events.split(","),
        signing_secret_hint=f"whsec_…{row.secret_end}",
        failing_since=unix_seconds(row.failing_since),
        last_error=row.last_error,
        events_delivered=row.events_delivered,
        events_given_up=row.events_given_up,
    )


def _to_delivery(row: DeliveryRow) -> WebhookDeliveryObject:
    return WebhookDeliveryObject(
        id=row.event_id,
        event_type=row.event_type,
        data=WebhookEvent.model_validate_json(row.payload).data,
        state=row.state,
        is_test=row.is_test,
        attempts=row.attempt,
        next_attempt_at=unix_seconds(row.due_at) if row.finished_at is None else None,
        status_code=row.status_code,
        last_error=row.last_error,
        created_at=unix_seconds(row.created_at) or 0,
        finished_at=unix_seconds(row.finished_at),
    )


def _with_secret(row: WebhookRow, secret: str) -> WebhookEndpointWithSecret:
    return WebhookEndpointWithSecret(**dict(_to_object(row)), signing_secret=secret)
