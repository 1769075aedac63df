"""Statements on webhook endpoints and on the outbox of their events.

Rows of endpoints are read without their secrets; only `claim_due` reads those, to sign events.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Delete,
    Float,
    Insert,
    Select,
    Update,
    any_,
    case,
    cast,
    delete,
    false,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningDelete, ReturningUpdate

from db.query import Query, columns_of, total
from db.tables import Webhook, WebhookDelivery


class WebhookRow(NamedTuple):
    """An endpoint without its secrets; `secret_end` is the last 4 characters of the current one."""

    id: str
    name: str
    url: str
    events: str
    created_at: datetime
    updated_at: datetime
    failing_since: datetime | None
    last_error: str | None
    events_delivered: int
    events_given_up: int
    secret_end: str


class DueDelivery(NamedTuple):
    """An event to send now, with all that sending needs."""

    event_id: str
    webhook_id: str
    url: str
    secret: str
    old_secret: str | None
    payload: str
    attempt: int
    age_seconds: float
    is_test: bool


class DeliveryResult(NamedTuple):
    """The result of a delivery, once `finished_at` is set."""

    finished_at: datetime | None
    status_code: int | None
    last_error: str | None


class DeliveryRow(NamedTuple):
    """A delivery of an endpoint. `due_at` is its next attempt, unless it has ended."""

    event_id: str
    event_type: str
    payload: str
    is_test: bool
    attempt: int
    due_at: datetime
    status_code: int | None
    last_error: str | None
    created_at: datetime
    finished_at: datetime | None
    state: str


class DeliveryCounts(NamedTuple):
    """Events of all tenants; `retrying` of those `waiting` were tried before, `oldest` is an age in seconds.

    The last two count for endpoints that exist.
    """

    waiting: int
    retrying: int
    oldest: float
    delivered: int
    given_up: int


_ENDPOINT: Final = (
    *(getattr(Webhook, name) for name in WebhookRow._fields[:-1]),
    func.right(Webhook.secret, 4).label("secret_end"),
)
_IS_WAITING = WebhookDelivery.finished_at.is_(None)
_state = case(
    (WebhookDelivery.is_delivered, "delivered"),
    (WebhookDelivery.finished_at.is_not(None), "given_up"),
    (WebhookDelivery.last_error.is_not(None), "retrying"),
    else_="waiting",
)


def insert_webhook(**columns: Any) -> Query[WebhookRow]:  # Any: the columns' own types
    """Insert an endpoint."""
    return Query(insert(Webhook).values(**columns).returning(*_ENDPOINT), WebhookRow)


def count_webhooks(tenant_id: str) -> Select[int]:
    """Count the endpoints of a tenant."""
    return select(func.count()).select_from(Webhook).where(Webhook.tenant_id == tenant_id)


def find_webhook(webhook_id: str, tenant_id: str) -> Query[WebhookRow]:
    """Find an endpoint of this tenant."""
    return Query(select(*_ENDPOINT).where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id), WebhookRow)


def list_webhooks(tenant_id: str, *, after: str | None, limit: int) -> Query[WebhookRow]:
    """List endpoints, newest first, from behind `after`; ids sort by time."""
    statement = select(*_ENDPOINT).where(Webhook.tenant_id == tenant_id)
    if after is not None:
        statement = statement.where(Webhook.id < after)
    return Query(statement.order_by(Webhook.id.desc()).limit(limit), WebhookRow)


def change_webhook(webhook_id: str, tenant_id: str, **columns: str) -> Query[WebhookRow]:
    """Change columns; `updated_at` moves only when one of them gets another value."""
    is_new = or_(false(), *(getattr(Webhook, name) != value for name, value in columns.items()))
    statement = (
        update(Webhook)
        .where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id)
        .values(**columns, updated_at=case((is_new, func.now()), else_=Webhook.updated_at))
        .returning(*_ENDPOINT)
    )
    return Query(statement, WebhookRow)


def rotate_secret(webhook_id: str, tenant_id: str, secret: str, *, overlap: timedelta | None) -> Query[WebhookRow]:
    """Replace the secret; the one before it also signs for `overlap`."""
    kept = (
        {"old_secret": Webhook.secret, "old_secret_until": func.now() + overlap}
        if overlap
        else {"old_secret": None, "old_secret_until": None}
    )
    statement = (
        update(Webhook)
        .where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id)
        .values(secret=secret, updated_at=func.now(), **kept)
        .returning(*_ENDPOINT)
    )
    return Query(statement, WebhookRow)


def delete_webhook(webhook_id: str, tenant_id: str) -> ReturningDelete[str]:
    """Delete an endpoint; its pending deliveries go with it."""
    return delete(Webhook).where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id).returning(Webhook.id)


def record_event(tenant_id: str, event_id: str, event_type: str, payload: str) -> Insert:
    """Insert a delivery, due now, for each endpoint that subscribes to the event's type.

    Belongs in the transaction in which the event happens. The endpoints' keys are locked, so that one deleted meanwhile
    is left out and does not fail the transaction.
    """
    wants = literal(event_type) == any_(func.string_to_array(Webhook.events, ","))
    endpoints = (
        select(literal(event_id), Webhook.id, Webhook.tenant_id, literal(event_type), literal(payload))
        .where(Webhook.tenant_id == tenant_id, wants)
        .with_for_update(read=True, key_share=True)
    )
    return insert(WebhookDelivery).from_select(
        ["event_id", "webhook_id", "tenant_id", "event_type", "payload"], endpoints
    )


def record_test(webhook_id: str, tenant_id: str, event_id: str, event_type: str, payload: str) -> Insert:
    """Insert a sample event for one endpoint, whatever it subscribes to."""
    return insert(WebhookDelivery).values(
        event_id=event_id,
        webhook_id=webhook_id,
        tenant_id=tenant_id,
        event_type=event_type,
        payload=payload,
        is_test=True,
    )


def test_result(webhook_id: str, event_id: str) -> Query[DeliveryResult]:
    """Find the result of a test."""
    statement = select(*columns_of(WebhookDelivery, DeliveryResult)).where(
        WebhookDelivery.event_id == event_id, WebhookDelivery.webhook_id == webhook_id
    )
    return Query(statement, DeliveryResult)


def list_deliveries(webhook_id: str, *, state: str | None, after: str | None, limit: int) -> Query[DeliveryRow]:
    """List the deliveries of an endpoint, newest first, from behind `after`; ids sort by time."""
    columns = (getattr(WebhookDelivery, name) for name in DeliveryRow._fields[:-1])
    statement = select(*columns, _state.label("state")).where(WebhookDelivery.webhook_id == webhook_id)
    if state is not None:
        statement = statement.where(_state == state)
    if after is not None:
        statement = statement.where(WebhookDelivery.event_id < after)
    return Query(statement.order_by(WebhookDelivery.event_id.desc()).limit(limit), DeliveryRow)


def claim_due(lease: timedelta, limit: int) -> Query[DueDelivery]:
    """Take deliveries that are due, the longest waiting first; each is due again when the lease is over."""
    due = (
        select(WebhookDelivery.event_id, WebhookDelivery.webhook_id)
        .where(_IS_WAITING, WebhookDelivery.due_at <= func.now())
        .order_by(WebhookDelivery.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    old_secret = case((Webhook.old_secret_until > func.now(), Webhook.old_secret), else_=null())
    age = cast(func.extract("epoch", func.now() - WebhookDelivery.created_at), Float)
    statement = (
        update(WebhookDelivery)
        .where(
            WebhookDelivery.event_id == due.c.event_id,
            WebhookDelivery.webhook_id == due.c.webhook_id,
            Webhook.id == WebhookDelivery.webhook_id,
        )
        .values(due_at=func.now() + lease, attempt=WebhookDelivery.attempt + 1)
        .returning(
            WebhookDelivery.event_id,
            WebhookDelivery.webhook_id,
            Webhook.url,
            Webhook.secret,
            old_secret.label("old_secret"),
            WebhookDelivery.payload,
            WebhookDelivery.attempt,
            age.label("age_seconds"),
            WebhookDelivery.is_test,
        )
    )
    return Query(statement, DueDelivery)


def _held(event_id: str, webhook_id: str, attempt: int) -> Update:
    """Update a waiting delivery for the holder of this attempt only."""
    return update(WebhookDelivery).where(
        WebhookDelivery.event_id == event_id,
        WebhookDelivery.webhook_id == webhook_id,
        WebhookDelivery.attempt == attempt,
        _IS_WAITING,
    )


def finish(
    event_id: str, webhook_id: str, attempt: int, *, is_delivered: bool, status_code: int | None, error: str | None
) -> ReturningUpdate[str]:
    """End a delivery as delivered or given up. No row: another attempt has begun."""
    return (
        _held(event_id, webhook_id, attempt)
        .values(finished_at=func.now(), is_delivered=is_delivered, status_code=status_code, last_error=error)
        .returning(WebhookDelivery.webhook_id)
    )


def postpone(
    event_id: str, webhook_id: str, attempt: int, *, delay: timedelta, status_code: int | None, error: str
) -> ReturningUpdate[str]:
    """Schedule another attempt after `delay`. No row: another attempt has begun."""
    return (
        _held(event_id, webhook_id, attempt)
        .values(due_at=func.now() + delay, status_code=status_code, last_error=error)
        .returning(WebhookDelivery.webhook_id)
    )


def mark_succeeded(webhook_id: str) -> Update:
    """Count a delivered event, and end the endpoint's failures."""
    return (
        update(Webhook)
        .where(Webhook.id == webhook_id)
        .values(failing_since=None, last_error=None, events_delivered=Webhook.events_delivered + 1)
    )


def mark_failing(webhook_id: str, error: str, *, is_given_up: bool) -> Update:
    """Record a failed attempt; with `is_given_up`, count its event as given up."""
    return (
        update(Webhook)
        .where(Webhook.id == webhook_id)
        .values(
            failing_since=func.coalesce(Webhook.failing_since, func.now()),
            last_error=error,
            events_given_up=Webhook.events_given_up + (1 if is_given_up else 0),
        )
    )


def delete_finished(age: timedelta) -> Delete:
    """Delete deliveries that ended this long ago."""
    return delete(WebhookDelivery).where(WebhookDelivery.finished_at < func.now() - age)


def delivery_counts() -> Query[DeliveryCounts]:
    """Count the events of all tenants."""
    age = func.extract("epoch", func.now() - func.min(WebhookDelivery.created_at))
    waiting = (
        select(
            func.count().label("waiting"),
            func.count().filter(WebhookDelivery.attempt > 0).label("retrying"),
            cast(func.coalesce(age, 0), Float).label("oldest"),
        )
        .where(_IS_WAITING, WebhookDelivery.is_test.is_(false()))
        .subquery()
    )
    ended = select(
        total(Webhook.events_delivered).label("delivered"),
        total(Webhook.events_given_up).label("given_up"),
    ).subquery()
    return Query(select(waiting, ended).select_from(waiting.join(ended, true())), DeliveryCounts)
