"""Events of responses in the background: every statement that ends their job inserts one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text, update

from core.schemas.webhooks import WebhookEvent
from db import jobs, responses, webhooks
from db.query import Query
from db.response_events import EndedJob
from db.tables import DEFAULT_TENANT, Job, WebhookDelivery
from tests.service.db.test_jobs import claim, expire_lease
from tests.support.rows import make_job
from workers.context import Database

EVERYTHING = "response.completed,response.failed,response.cancelled,response.incomplete"
PROBLEM = '{"status": 500, "message": "x"}'


def listen(
    connection: Connection, name: str = "we_1", *, events: str = EVERYTHING, tenant: str = DEFAULT_TENANT
) -> None:
    columns = {"id": name, "tenant_id": tenant, "name": "n", "url": "https://x/", "secret": "whsec_", "events": events}
    webhooks.insert_webhook(**columns).fetch_one(connection)


def keep(
    connection: Connection, *, is_background: bool = True, body: str = "{}", request: str = "{}"
) -> tuple[str, str]:
    """Insert a response; returns the ids of its job and its own."""
    job_id = make_job(connection, body=body)
    response_id = "resp_" + job_id.removeprefix("chatcmpl-")
    connection.execute(
        responses.insert_response(
            response_id=response_id,
            tenant_id=DEFAULT_TENANT,
            job_id=job_id,
            previous_id=None,
            model="fake",
            request=request,
            input_items="[]",
            is_background=is_background,
        )
    )
    return job_id, response_id


def deliveries(connection: Connection) -> list[Any]:
    return list(connection.execute(select(WebhookDelivery.__table__)).all())


def complete(job_id: str, *, is_cut: bool = False) -> Query[EndedJob]:
    provenance = jobs.Provenance(build="b", model_hash=None)
    return jobs.complete_job(job_id, 1, answer="{}", tokens=(1, 1, 0, 0), provenance=provenance, is_cut=is_cut)


def lose(connection: Connection, job_id: str, *, cancel: bool = False) -> None:
    claim(connection, job_id)
    expire_lease(connection, job_id)
    connection.execute(update(Job).where(Job.id == job_id).values(cancel_requested=cancel))


def run(connection: Connection, job_id: str) -> None:
    claim(connection, job_id)


def cancel_a_lost_one(connection: Connection, job_id: str) -> None:
    lose(connection, job_id, cancel=True)


def leave_waiting(connection: Connection, job_id: str) -> None:
    """Leave the job queued."""


Before = Callable[[Connection, str], None]
ENDS: list[tuple[str, Before, Callable[[str], Query[EndedJob]]]] = [
    ("response.completed", run, complete),
    ("response.incomplete", run, lambda job_id: complete(job_id, is_cut=True)),
    ("response.failed", run, lambda job_id: jobs.fail_job(job_id, 1, PROBLEM)),
    ("response.cancelled", run, lambda job_id: jobs.end_cancelled_job(job_id, 1)),
    ("response.cancelled", leave_waiting, jobs.cancel_queued_job),
    ("response.failed", lose, lambda _: jobs.fail_lost_jobs(1, PROBLEM)),
    ("response.cancelled", cancel_a_lost_one, lambda _: jobs.cancel_lost_jobs()),
]


@pytest.mark.parametrize(("event_type", "before", "end"), ENDS)
def test_every_end_of_a_job_sends_one_event(
    connection: Connection, event_type: str, before: Before, end: Callable[[str], Query[EndedJob]]
) -> None:
    listen(connection)
    job_id, response_id = keep(connection)
    before(connection, job_id)
    (row,) = end(job_id).fetch_all(connection)
    assert (row.id, row.has_events) == (job_id, True)
    assert end(job_id).fetch_all(connection) == []
    (delivery,) = deliveries(connection)
    event = WebhookEvent.model_validate_json(delivery.payload, strict=True)
    assert (event.id, event.type, event.data.id) == (delivery.event_id, delivery.event_type, response_id)
    assert event.type == event_type
    assert json.loads(delivery.payload).keys() == WebhookEvent.model_fields.keys()
    assert event.created_at == int(connection.execute(select(func.now())).scalar_one().timestamp())
    assert event.id.startswith("evt_")


def test_a_worker_that_lost_its_job_sends_no_event(connection: Connection) -> None:
    listen(connection)
    job_id, _ = keep(connection)
    claim(connection, job_id)
    assert jobs.fail_job(job_id, 2, PROBLEM).fetch_optional(connection) is None
    assert deliveries(connection) == []


def test_only_responses_in_the_background_send_events(connection: Connection) -> None:
    listen(connection)
    waited_for, _ = keep(connection, is_background=False)
    for job_id in (waited_for, make_job(connection)):
        assert jobs.cancel_queued_job(job_id).fetch_one(connection).has_events is False
    assert deliveries(connection) == []


def test_only_subscribed_endpoints_get_an_event(connection: Connection) -> None:
    connection.execute(text("INSERT INTO tenants (id) VALUES ('other') ON CONFLICT DO NOTHING"))
    listen(connection, "we_1")
    listen(connection, "we_2", events="batch.failed,response.cancelled")
    listen(connection, "we_3", events="response.completed")
    listen(connection, "we_4", tenant="other")
    job_id, _ = keep(connection)
    jobs.cancel_queued_job(job_id).fetch_one(connection)
    assert {delivery.webhook_id for delivery in deliveries(connection)} == {"we_1", "we_2"}
    assert len({delivery.event_id for delivery in deliveries(connection)}) == 1


def test_each_job_that_a_sweep_ends_sends_an_event(connection: Connection) -> None:
    listen(connection)
    kept = [keep(connection) for _ in range(3)]
    silent, _ = keep(connection, is_background=False)
    for job_id in (*(job_id for job_id, _ in kept), silent):
        lose(connection, job_id)
    assert len(jobs.fail_lost_jobs(1, PROBLEM).fetch_all(connection)) == 4
    subjects = {json.loads(delivery.payload)["data"]["id"] for delivery in deliveries(connection)}
    assert subjects == {response_id for _, response_id in kept}


def test_an_end_that_is_rolled_back_sends_no_event(database: Database) -> None:
    with database.begin() as connection:
        listen(connection)
        job_id, _ = keep(connection)
    with database.engine.connect() as connection:
        jobs.cancel_queued_job(job_id).fetch_one(connection)
        connection.rollback()
    with database.begin() as connection:
        assert deliveries(connection) == []
