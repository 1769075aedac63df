"""Webhook outbox: events are rows, inserted in the transaction in which they happen."""

from __future__ import annotations

import time

from sqlalchemy import Connection

from core import ids
from core.schemas.webhooks import EventSubject, EventType, WebhookEvent
from db import webhooks


def record_webhook_event(connection: Connection, tenant_id: str, event_type: EventType, subject_id: str) -> None:
    """Insert an event for every endpoint that subscribes to it. Call it in the transaction in which the event happens."""
    event = WebhookEvent(
        id=ids.new_id(ids.EVENT), type=event_type, created_at=int(time.time()), data=EventSubject(id=subject_id)
    )
    connection.execute(webhooks.record_event(tenant_id, event.id, event_type, event.model_dump_json()))
