"""Statements on webhook endpoints and on the outbox of their events.

What shows an endpoint leaves its secrets in the database; only what signs reads them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import (
    Delete,
    Insert,
    Select,
    Update,
    any_,
    case,
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

from db.tables import Webhook, WebhookDelivery

_SHOWN = (
    Webhook.id,
    Webhook.name,
    Webhook.url,
    Webhook.events,
    Webhook.created_at,
    Webhook.updated_at,
    Webhook.failing_since,
    Webhook.last_error,
    Webhook.events_delivered,
    Webhook.events_given_up,
    func.right(Webhook.secret, 4).label("secret_end"),
)
_IS_WAITING = WebhookDelivery.finished_at.is_(None)


def insert_webhook(**columns: Any) -> Any:  # Any: the columns' own types; ReturningInsert
    """A new endpoint."""
    return insert(Webhook).values(**columns).returning(*_SHOWN)


def count_webhooks(tenant_id: str) -> Select[int]:
    """Endpoints of a tenant."""
    return select(func.count()).select_from(Webhook).where(Webhook.tenant_id == tenant_id)


def find_webhook(webhook_id: str, tenant_id: str) -> Any:  # Any: a Select of `_SHOWN`
    """An endpoint of this tenant, without its secrets."""
    return select(*_SHOWN).where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id)


def list_webhooks(tenant_id: str, *, after: str | None, limit: int) -> Any:  # Any: a Select of `_SHOWN`
    """Newest first, from behind `after`; ids sort by time."""
    query = select(*_SHOWN).where(Webhook.tenant_id == tenant_id)
    if after is not None:
        query = query.where(Webhook.id < after)
    return query.order_by(Webhook.id.desc()).limit(limit)


def change_webhook(webhook_id: str, tenant_id: str, **columns: str) -> Any:  # Any: ReturningUpdate
    """Other columns; `updated_at` moves only when one of them is another value than before."""
    is_new = or_(false(), *(getattr(Webhook, name) != value for name, value in columns.items()))
    return (
        update(Webhook)
        .where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id)
        .values(**columns, updated_at=case((is_new, func.now()), else_=Webhook.updated_at))
        .returning(*_SHOWN)
    )


def rotate_secret(webhook_id: str, tenant_id: str, secret: str, *, overlap: timedelta | None) -> Any:
    """Another secret; the one before it signs along for `overlap`. Any: ReturningUpdate."""
    kept = (
        {"old_secret": Webhook.secret, "old_secret_until": func.now() + overlap}
        if overlap
        else {"old_secret": None, "old_secret_until": None}
    )
    return (
        update(Webhook)
        .where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id)
        .values(secret=secret, updated_at=func.now(), **kept)
        .returning(*_SHOWN)
    )


def delete_webhook(webhook_id: str, tenant_id: str) -> Any:  # Any: ReturningDelete
    """Gone, and with it what it has not been told yet."""
    return delete(Webhook).where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id).returning(Webhook.id)


def record_event(tenant_id: str, event_id: str, event_type: str, payload: str) -> Insert:
    """For each endpoint that wants to know: to be sent now. Belongs in the transaction in which the event happens.

    The endpoints' keys are locked, so that one deleted meanwhile is left out and does not fail the transaction.
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
    """A sample event for one endpoint, whatever it subscribed to."""
    return insert(WebhookDelivery).values(
        event_id=event_id,
        webhook_id=webhook_id,
        tenant_id=tenant_id,
        event_type=event_type,
        payload=payload,
        is_test=True,
    )


def test_result(webhook_id: str, event_id: str) -> Any:  # Any: a Select of three columns
    """finished_at, status code and error of a test."""
    return select(WebhookDelivery.finished_at, WebhookDelivery.status_code, WebhookDelivery.last_error).where(
        WebhookDelivery.event_id == event_id, WebhookDelivery.webhook_id == webhook_id
    )


def claim_due(lease: timedelta, limit: int) -> Any:  # Any: ReturningUpdate
    """Take what is due, the longest waiting first; due again when the lease is over.

    Returns all that sending needs: event, endpoint, url, secrets, payload, attempt, the age in seconds, is_test.
    """
    due = (
        select(WebhookDelivery.event_id, WebhookDelivery.webhook_id)
        .where(_IS_WAITING, WebhookDelivery.due_at <= func.now())
        .order_by(WebhookDelivery.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    old_secret = case((Webhook.old_secret_until > func.now(), Webhook.old_secret), else_=null())
    return (
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
            func.extract("epoch", func.now() - WebhookDelivery.created_at).label("age_seconds"),
            WebhookDelivery.is_test,
        )
    )


def _held(event_id: str, webhook_id: str, attempt: int) -> Update:
    """Only by whoever made this attempt."""
    return update(WebhookDelivery).where(
        WebhookDelivery.event_id == event_id,
        WebhookDelivery.webhook_id == webhook_id,
        WebhookDelivery.attempt == attempt,
        _IS_WAITING,
    )


def finish(
    event_id: str, webhook_id: str, attempt: int, *, is_delivered: bool, status_code: int | None, error: str | None
) -> Any:
    """Taken, or given up. No row: somebody else is at it by now. Any: ReturningUpdate."""
    return (
        _held(event_id, webhook_id, attempt)
        .values(finished_at=func.now(), is_delivered=is_delivered, status_code=status_code, last_error=error)
        .returning(WebhookDelivery.webhook_id)
    )


def postpone(
    event_id: str, webhook_id: str, attempt: int, *, delay: timedelta, status_code: int | None, error: str
) -> Any:
    """Once more, later. No row: somebody else is at it by now. Any: ReturningUpdate."""
    return (
        _held(event_id, webhook_id, attempt)
        .values(due_at=func.now() + delay, status_code=status_code, last_error=error)
        .returning(WebhookDelivery.webhook_id)
    )


def mark_succeeded(webhook_id: str) -> Update:
    """The endpoint took an event."""
    return (
        update(Webhook)
        .where(Webhook.id == webhook_id)
        .values(failing_since=None, last_error=None, events_delivered=Webhook.events_delivered + 1)
    )


def mark_failing(webhook_id: str, error: str, *, is_given_up: bool) -> Update:
    """The endpoint did not take an event."""
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
    """Events that ended this long ago."""
    return delete(WebhookDelivery).where(WebhookDelivery.finished_at < func.now() - age)


def delivery_counts() -> Any:  # Any: a Select of five numbers
    """Over all tenants: events waiting, those of them tried before, the age in seconds of the oldest, delivered, given up.

    The last two are of the endpoints that exist.
    """
    waiting = (
        select(
            func.count().label("waiting"),
            func.count().filter(WebhookDelivery.attempt > 0).label("retrying"),
            func.coalesce(func.extract("epoch", func.now() - func.min(WebhookDelivery.created_at)), 0).label("oldest"),
        )
        .where(_IS_WAITING, WebhookDelivery.is_test.is_(false()))
        .subquery()
    )
    ended = select(
        func.coalesce(func.sum(Webhook.events_delivered), 0).label("delivered"),
        func.coalesce(func.sum(Webhook.events_given_up), 0).label("given_up"),
    ).subquery()
    return select(waiting, ended).select_from(waiting.join(ended, true()))
