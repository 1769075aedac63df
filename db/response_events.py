"""Webhook events of responses in the background: written by the statement that ends their job.

So no end is recorded without its event, be it by the worker, by the sweeper, or by the api for a queued job.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Text, Update, any_, cast, exists, func, insert, literal, select

from core.ids import EVENT
from core.schemas.responses.objects import RESPONSE
from core.schemas.webhooks import EventType
from db.query import Query
from db.tables import Job, Response, Webhook, WebhookDelivery

_COLUMNS: Final = ["event_id", "webhook_id", "tenant_id", "event_type", "payload"]


class EndedJob(NamedTuple):
    """A job that has ended. `has_events`: the statement has written webhook events, so a clerk should send them."""

    id: str
    fence: int
    has_events: bool


def with_response_events(end: Update, event_type: EventType) -> Query[EndedJob]:
    """Return `end`, an UPDATE of jobs, together with the events of those that answer a response in the background."""
    ended = end.returning(Job.id, Job.fence).cte("ended")
    # a job ends once, so the id of its event can be made from that of its response
    event_id = func.replace(Response.id, RESPONSE, EVENT)
    wants = literal(event_type) == any_(func.string_to_array(Webhook.events, ","))
    deliveries = (
        select(event_id, Webhook.id, Webhook.tenant_id, literal(event_type), _payload(event_id, event_type))
        .select_from(ended)
        .join(Response, Response.job_id == ended.c.id)
        .join(Webhook, Webhook.tenant_id == Response.tenant_id)
        .where(Response.is_background, wants)
        .with_for_update(read=True, key_share=True, of=Webhook)  # as in `webhooks.record_event`
    )
    events = insert(WebhookDelivery).from_select(_COLUMNS, deliveries).returning(WebhookDelivery.event_id).cte("events")
    has_events = exists(select(events.c.event_id)).label("has_events")
    return Query(select(ended.c.id, ended.c.fence, has_events), EndedJob)


def _payload(event_id: Any, event_type: EventType) -> Any:  # Any: SQL expressions
    """Build the JSON of a `core.schemas.webhooks.WebhookEvent`."""
    now = cast(func.floor(func.extract("epoch", func.now())), BigInteger)
    subject = func.json_build_object("id", Response.id)
    event = func.json_build_object(
        "id", event_id, "object", "event", "type", event_type, "created_at", now, "data", subject
    )
    return cast(event, Text)
