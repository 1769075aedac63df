"""Webhook outbox and dispatcher: events are recorded with their cause, retried, and given up late. Tests move time in rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from sqlalchemy import func, select, text, update
from structlog.testing import capture_logs

from core import ids
from core.queue.events import Event, outcome_event
from core.schemas.webhooks import EVENT_TYPES
from core.settings import Settings
from core.states import BatchState
from core.url_guard import UrlGuard
from db import batches, webhooks
from db.tables import DEFAULT_TENANT, Batch, Webhook, WebhookDelivery
from tests.service.workers.batches.test_clerk import answer_everything, line, upload
from tests.support.receiver import Receiver, SilentSocket
from tests.support.rows import make_running_batch
from tests.support.stack import wait_for
from workers.batches.finalize import finalize
from workers.batches.prepare import prepare
from workers.context import ClerkContext, Database
from workers.maintenance.webhook_delivery import LEASE, WebhookDispatcher
from workers.maintenance.webhook_sender import WebhookSender
from workers.runtime.webhook_outbox import record_webhook_event

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW_SECRET = "whsec_b3RoZXIgc2VjcmV0IG9mIHRoaXJ0eS10d28gYnl0ZXM="
LOOPBACK = UrlGuard(hosts=("*",), networks=(ip_network("127.0.0.0/8"),))
ALL = ",".join(EVENT_TYPES)


@pytest.fixture
def outbox(database: Database) -> Database:
    """An outbox without endpoints and events."""
    with database.begin() as connection:
        connection.execute(text("TRUNCATE webhooks CASCADE"))
    return database


@pytest.fixture
def events() -> list[Event]:
    """The events that `dispatcher` publishes."""
    return []


@pytest.fixture
def dispatcher(settings: Settings, outbox: Database, events: list[Event]) -> Iterator[WebhookDispatcher]:
    sender = WebhookSender(LOOPBACK)
    yield WebhookDispatcher(settings, outbox, sender, events.append)
    sender.close()


def endpoint(database: Database, url: str, events: str = ALL, tenant: str = DEFAULT_TENANT) -> str:
    webhook_id = ids.new_id(ids.WEBHOOK)
    with database.begin() as connection:
        columns = {"tenant_id": tenant, "name": "test", "url": url, "secret": SECRET, "events": events}
        webhooks.insert_webhook(id=webhook_id, **columns).fetch_one(connection)
    return webhook_id


def happen(database: Database, subject: str = "batch_1") -> None:
    with database.begin() as connection:
        record_webhook_event(connection, DEFAULT_TENANT, "batch.completed", subject)


def deliveries(database: Database) -> list[Any]:
    with database.begin() as connection:
        return list(connection.execute(select(WebhookDelivery.__table__).order_by(WebhookDelivery.created_at)).all())


def only(database: Database) -> Any:
    (delivery,) = deliveries(database)
    return delivery


def webhook(database: Database, webhook_id: str) -> Any:
    with database.begin() as connection:
        return connection.execute(select(Webhook.__table__).where(Webhook.id == webhook_id)).one()


def pass_time(database: Database, hours: float = 1.01) -> None:
    """Move all rows into the past."""
    earlier = timedelta(hours=hours)
    with database.begin() as connection:
        connection.execute(
            update(WebhookDelivery).values(
                due_at=WebhookDelivery.due_at - earlier,
                created_at=WebhookDelivery.created_at - earlier,
                finished_at=WebhookDelivery.finished_at - earlier,
            )
        )
        connection.execute(update(Webhook).values(old_secret_until=Webhook.old_secret_until - earlier))


# Recorded with its cause


def complete(clerk: ClerkContext) -> str:
    with clerk.database.begin() as connection:
        batch_id, _ = make_running_batch(connection)
    answer_everything(clerk)
    with clerk.database.begin() as connection:
        batches.begin_finalizing(batch_id).fetch_one(connection)
    finalize(clerk, batch_id)
    return batch_id


def fail(clerk: ClerkContext) -> str:
    batch_id = upload(clerk, "no json\n")
    prepare(clerk, batch_id)
    return batch_id


def expire(clerk: ClerkContext) -> str:
    with clerk.database.begin() as connection:
        batch_id, _ = make_running_batch(connection, window_seconds=1)
        connection.execute(update(Batch).values(expires_at=func.now() - timedelta(seconds=1)))
        connection.execute(batches.expire_batches()).one()
    finalize(clerk, batch_id)
    return batch_id


def cancel(clerk: ClerkContext) -> str:
    with clerk.database.begin() as connection:
        batch_id, _ = make_running_batch(connection)
        batches.move(batch_id, BatchState.CANCELLING).fetch_one(connection)
    finalize(clerk, batch_id)
    return batch_id


def cancel_early(clerk: ClerkContext) -> str:
    """A batch that is not prepared yet."""
    batch_id = upload(clerk, line("a") + "\n")
    with clerk.database.begin() as connection:
        batches.move(batch_id, BatchState.CANCELLING).fetch_one(connection)
    prepare(clerk, batch_id)
    finalize(clerk, batch_id)
    return batch_id


ENDS = [
    (complete, "batch.completed"),
    (fail, "batch.failed"),
    (expire, "batch.expired"),
    (cancel, "batch.cancelled"),
    (cancel_early, "batch.cancelled"),
]


@pytest.mark.parametrize(("end", "event_type"), ENDS, ids=[end.__name__ for end, _ in ENDS])
def test_every_end_of_a_batch_is_recorded_once(
    outbox: Database, clerk: ClerkContext, dispatcher: WebhookDispatcher, end: Any, event_type: str
) -> None:
    with Receiver() as receiver:
        endpoint(outbox, receiver.url)
        batch_id = end(clerk)
        finalize(clerk, batch_id)
        prepare(clerk, batch_id)
        while dispatcher.deliver_due():
            pass
    (request,) = receiver.received
    event = OpenAI(api_key="any").webhooks.unwrap(request.body, request.headers, secret=SECRET)
    assert (event.type, event.data.id) == (event_type, batch_id)  # type: ignore[union-attr]
    assert event.object == "event"
    assert event.id == request.headers["webhook-id"]
    assert event.id.startswith("evt_")
    with outbox.begin() as connection:
        status, ended_at = connection.execute(
            select(Batch.status, getattr(Batch, f"{event_type.removeprefix('batch.')}_at")).where(Batch.id == batch_id)
        ).one()
    assert f"batch.{status}" == event_type
    assert abs(ended_at.timestamp() - event.created_at) < 5
    assert json.loads(request.body).keys() == {"id", "object", "type", "created_at", "data"}


def test_an_end_that_is_rolled_back_is_not_recorded(outbox: Database) -> None:
    endpoint(outbox, "https://hooks.example.com/")
    with pytest.raises(RuntimeError), outbox.begin() as connection:
        record_webhook_event(connection, DEFAULT_TENANT, "batch.completed", "batch_1")
        raise RuntimeError
    assert deliveries(outbox) == []


def test_only_subscribed_endpoints_get_an_event(outbox: Database) -> None:
    with outbox.begin() as connection:
        connection.execute(text("INSERT INTO tenants (id) VALUES ('other') ON CONFLICT DO NOTHING"))
    url = "https://hooks.example.com/"
    wanted = [endpoint(outbox, url), endpoint(outbox, url, "batch.failed,batch.completed")]
    endpoint(outbox, url, "batch.failed")
    endpoint(outbox, url, tenant="other")
    happen(outbox)
    recorded = deliveries(outbox)
    assert {delivery.webhook_id for delivery in recorded} == set(wanted)
    assert len({delivery.event_id for delivery in recorded}) == 1


# Retried until it is delivered


def test_the_outcome_of_a_test_is_published_and_that_of_an_event_is_not(
    outbox: Database, dispatcher: WebhookDispatcher, events: list[Event]
) -> None:
    with Receiver() as receiver:
        webhook_id = endpoint(outbox, receiver.url)
        happen(outbox)
        with outbox.begin() as connection:
            connection.execute(webhooks.record_test(webhook_id, DEFAULT_TENANT, "evt_test", "batch.completed", "{}"))
        dispatcher.deliver_due()
    assert len(receiver.received) == 2
    assert events == [outcome_event("evt_test")]


def test_a_delivered_event_is_not_sent_again(outbox: Database, dispatcher: WebhookDispatcher) -> None:
    with Receiver() as receiver:
        webhook_id = endpoint(outbox, receiver.url)
        happen(outbox)
        assert dispatcher.deliver_due() == 1
        pass_time(outbox)
        assert dispatcher.deliver_due() == 0
    assert len(receiver.received) == 1
    assert (only(outbox).is_delivered, only(outbox).status_code, only(outbox).attempt) == (True, 200, 1)
    assert webhook(outbox, webhook_id).events_delivered == 1


@pytest.mark.parametrize("status", [302, 404, 429, 500])
def test_any_other_answer_is_retried_with_the_same_id(
    outbox: Database, dispatcher: WebhookDispatcher, status: int
) -> None:
    with Receiver(status, status) as receiver:
        webhook_id = endpoint(outbox, receiver.url)
        happen(outbox)
        assert dispatcher.deliver_due() == 1
        assert dispatcher.deliver_due() == 0, "not at once"
        assert (only(outbox).finished_at, only(outbox).status_code) == (None, status)
        assert webhook(outbox, webhook_id).failing_since is not None
        assert webhook(outbox, webhook_id).last_error == f"The answer was HTTP {status}."
        for _ in range(2):
            pass_time(outbox)
            assert dispatcher.deliver_due() == 1
    assert len({(request.headers["webhook-id"], request.body) for request in receiver.received}) == 1
    assert len(receiver.received) == 3
    assert only(outbox).is_delivered
    assert (webhook(outbox, webhook_id).failing_since, webhook(outbox, webhook_id).last_error) == (None, None)


def test_a_receiver_that_is_down_is_tried_for_three_days_and_then_given_up(
    outbox: Database, dispatcher: WebhookDispatcher
) -> None:
    with SilentSocket() as gone:
        url = f"http://127.0.0.1:{gone.port}/"
    webhook_id = endpoint(outbox, url)
    happen(outbox)
    hours = 0
    while dispatcher.deliver_due():
        pass_time(outbox)
        hours += 1
    assert 71 <= hours <= 73
    assert (only(outbox).is_delivered, only(outbox).status_code) == (False, None)
    assert only(outbox).last_error == "The connection failed (ConnectError)."
    shown = webhook(outbox, webhook_id)
    assert (shown.events_given_up, shown.last_error) == (1, "The connection failed (ConnectError).")
    assert shown.failing_since is not None


def test_an_event_of_a_dead_clerk_is_sent_again_and_its_late_result_does_not_count(
    outbox: Database, dispatcher: WebhookDispatcher
) -> None:
    with Receiver() as receiver:
        webhook_id = endpoint(outbox, receiver.url)
        happen(outbox)
        with outbox.begin() as connection:
            dead = webhooks.claim_due(LEASE, 10).fetch_one(connection)
        assert dispatcher.deliver_due() == 0, "under its lease"
        pass_time(outbox)
        assert dispatcher.deliver_due() == 1
    late = webhooks.finish(dead.event_id, webhook_id, dead.attempt, is_delivered=False, status_code=None, error="late")
    with outbox.begin() as connection:
        assert connection.execute(late).one_or_none() is None
    assert receiver.received[0].headers["webhook-id"] == dead.event_id
    assert only(outbox).is_delivered


def test_two_clerks_never_send_the_same_event_at_once(outbox: Database) -> None:
    endpoint(outbox, "https://hooks.example.com/")
    for n in range(4):
        happen(outbox, f"batch_{n}")
    with outbox.begin() as one, outbox.begin() as other:
        taken = [row.event_id for row in webhooks.claim_due(LEASE, 3).fetch_all(one)]
        rest = [row.event_id for row in webhooks.claim_due(LEASE, 3).fetch_all(other)]
    assert (len(taken), len(rest)) == (3, 1)
    assert not set(taken) & set(rest)


def test_a_bad_endpoint_does_not_delay_the_others(outbox: Database, dispatcher: WebhookDispatcher) -> None:
    with Receiver() as receiver:
        endpoint(outbox, "https://127.0.0.1:1/not/allowed\\")
        broken = endpoint(outbox, receiver.url)
        endpoint(outbox, receiver.url)
        with outbox.begin() as connection:
            connection.execute(update(Webhook).where(Webhook.id == broken).values(secret="whsec_"))
        happen(outbox)
        assert dispatcher.deliver_due() == 3
    assert len(receiver.received) == 1
    assert webhook(outbox, broken).last_error == "The request could not be made."
    assert sorted(delivery.is_delivered for delivery in deliveries(outbox)) == [False, False, True]


def test_a_deleted_endpoint_gets_no_more_events(outbox: Database, dispatcher: WebhookDispatcher) -> None:
    with Receiver() as receiver:
        webhook_id = endpoint(outbox, receiver.url)
        happen(outbox)
        with outbox.begin() as connection:
            connection.execute(webhooks.delete_webhook(webhook_id, DEFAULT_TENANT)).one()
        assert dispatcher.deliver_due() == 0
    assert receiver.received == []


def test_an_endpoint_deleted_beside_it_does_not_fail_an_event(outbox: Database) -> None:
    doomed, kept = (endpoint(outbox, "https://hooks.example.com/") for _ in range(2))
    with ThreadPoolExecutor(1) as beside, outbox.engine.connect() as connection:
        connection.execute(webhooks.delete_webhook(doomed, DEFAULT_TENANT)).one()
        inserting = beside.submit(happen, outbox)
        wait_for(lambda: is_anyone_blocked(outbox), "the event meets the delete")
        connection.commit()
        inserting.result(10)
    assert only(outbox).webhook_id == kept


def is_anyone_blocked(database: Database) -> bool:
    with database.begin() as connection:
        return bool(connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


def test_old_events_are_forgotten_and_waiting_ones_are_not(outbox: Database, dispatcher: WebhookDispatcher) -> None:
    with Receiver(200, 500) as receiver:
        endpoint(outbox, receiver.url)
        for subject in ("batch_1", "batch_2"):
            happen(outbox, subject)
            dispatcher.deliver_due()
    pass_time(outbox, hours=24 * 8)
    with outbox.begin() as connection:
        connection.execute(webhooks.delete_finished(timedelta(days=7)))
    assert json.loads(only(outbox).payload)["data"]["id"] == "batch_2"


# Secrets


@dataclass
class Verifier:
    """Does the official client accept the last request with this secret?"""

    receiver: Receiver

    def accepts(self, secret: str) -> bool:
        request = self.receiver.received[-1]
        try:
            OpenAI(api_key="any").webhooks.unwrap(request.body, request.headers, secret=secret)
        except InvalidWebhookSignatureError:
            return False
        return True


@pytest.mark.parametrize("overlap", [None, timedelta(hours=24)], ids=["at once", "for a day"])
def test_a_rotated_secret_signs_along_for_as_long_as_asked(
    outbox: Database, dispatcher: WebhookDispatcher, overlap: timedelta | None
) -> None:
    with Receiver() as receiver:
        verifier = Verifier(receiver)
        webhook_id = endpoint(outbox, receiver.url)
        with outbox.begin() as connection:
            webhooks.rotate_secret(webhook_id, DEFAULT_TENANT, NEW_SECRET, overlap=overlap).fetch_one(connection)
        happen(outbox)
        dispatcher.deliver_due()
        assert verifier.accepts(NEW_SECRET)
        assert verifier.accepts(SECRET) == (overlap is not None)
        pass_time(outbox, hours=24.01)
        happen(outbox, "batch_2")
        dispatcher.deliver_due()
        assert len(receiver.received) == 2
        assert (verifier.accepts(NEW_SECRET), verifier.accepts(SECRET)) == (True, False)


def test_logs_have_neither_secrets_nor_urls(outbox: Database, dispatcher: WebhookDispatcher) -> None:
    with capture_logs() as logs, Receiver(500) as receiver:
        endpoint(outbox, receiver.url)
        happen(outbox)
        dispatcher.deliver_due()
        pass_time(outbox)
        dispatcher.deliver_due()
    assert [entry["event"] for entry in logs] == ["webhook_failed", "webhook_delivered"]
    assert SECRET not in str(logs)
    assert receiver.url not in str(logs)


# Running


def test_a_dispatcher_sends_waiting_events_and_those_it_is_woken_for(outbox: Database, settings: Settings) -> None:
    with Receiver() as receiver:
        endpoint(outbox, receiver.url)
        happen(outbox)
        dispatcher = WebhookDispatcher(
            settings.model_copy(update={"sweep_seconds": 3600.0}), outbox, WebhookSender(LOOPBACK), lambda _: None
        )
        dispatcher.start()
        try:
            wait_for(lambda: len(receiver.received) == 1, "what waited")
            happen(outbox, "batch_2")
            dispatcher.wake()
            wait_for(lambda: len(receiver.received) == 2, "what it was woken for")
        finally:
            dispatcher.close()
    assert all(delivery.is_delivered for delivery in deliveries(outbox)), "running attempts are finished"


def test_counts_are_of_waiting_and_of_ended_deliveries(outbox: Database, dispatcher: WebhookDispatcher) -> None:
    with Receiver(200, 500) as receiver:
        endpoint(outbox, receiver.url)
        for subject in ("batch_1", "batch_2"):
            happen(outbox, subject)
            dispatcher.deliver_due()
    pass_time(outbox)
    happen(outbox, "batch_3")
    with outbox.begin() as connection:
        counts = webhooks.delivery_counts().fetch_one(connection)
    assert (counts.waiting, counts.retrying, counts.delivered, counts.given_up) == (2, 1, 1, 0)
    assert 3600 < counts.oldest < 3700
