"""The events of responses in the background: written by the very statement that ends their job.

So an end that is not told cannot be written, whoever ends the job: its worker, the sweeper, or the api for one that waits.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, Text, Update, any_, cast, exists, func, insert, literal, select

from core.ids import EVENT
from core.schemas.responses.objects import RESPONSE
from core.schemas.webhooks import EventType
from db.tables import Job, Response, Webhook, WebhookDelivery

_COLUMNS: Final = ["event_id", "webhook_id", "tenant_id", "event_type", "payload"]


def with_response_events(end: Update, event_type: EventType) -> Any:  # Any: a Select of three columns
    """`end`, an UPDATE of jobs, together with the events of those that answer in the background, for who wants to know.

    A row for each job that ended: `id`, `fence`, and whether there `is_told` anything, so that a clerk should be woken.
    """
    ended = end.returning(Job.id, Job.fence).cte("ended")
    # a job ends once: its event may be called as its response is
    event_id = func.replace(Response.id, RESPONSE, EVENT)
    wants = literal(event_type) == any_(func.string_to_array(Webhook.events, ","))
    told = (
        select(event_id, Webhook.id, Webhook.tenant_id, literal(event_type), _payload(event_id, event_type))
        .select_from(ended)
        .join(Response, Response.job_id == ended.c.id)
        .join(Webhook, Webhook.tenant_id == Response.tenant_id)
        .where(Response.is_background, wants)
        .with_for_update(read=True, key_share=True, of=Webhook)  # as in `webhooks.record_event`
    )
    events = insert(WebhookDelivery).from_select(_COLUMNS, told).returning(WebhookDelivery.event_id).cte("told")
    return select(ended.c.id, ended.c.fence, exists(select(events.c.event_id)).label("is_told"))


def _payload(event_id: Any, event_type: EventType) -> Any:  # Any: SQL expressions
    """A `core.schemas.webhooks.WebhookEvent`."""
    now = cast(func.floor(func.extract("epoch", func.now())), BigInteger)
    subject = func.json_build_object("id", Response.id)
    event = func.json_build_object(
        "id", event_id, "object", "event", "type", event_type, "created_at", now, "data", subject
    )
    return cast(event, Text)
