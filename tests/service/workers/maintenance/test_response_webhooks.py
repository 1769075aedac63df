"""The end of a background response is recorded in the outbox by the process that ends its job, and wakes a clerk."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from openai import OpenAI
from sqlalchemy import select

from core.queue.names import CLERK_QUEUE
from core.settings import Settings
from db.tables import WebhookDelivery
from engine.process.client import EngineLost
from engine.types import Choice, Failed, Finished, FinishReason, Request, Usage
from tests.service.db.test_response_events import keep, listen, lose
from tests.service.workers.batches.test_clerk import tickets_in
from tests.service.workers.maintenance.test_webhook_delivery import ALL, LOOPBACK, SECRET, endpoint
from tests.support.receiver import Receiver
from tests.support.scripted_engine import Answer, ScriptedEngine, echo
from workers.context import ClerkContext, Database, WorkerContext
from workers.job_runner import JobRunner
from workers.maintenance.sweeper import Sweeper
from workers.maintenance.webhook_delivery import WebhookDispatcher
from workers.maintenance.webhook_sender import WebhookSender

BODY = '{"model": "fake", "messages": [{"role": "user", "content": "hello"}], "stream": true}'


def kept(database: Database) -> tuple[str, str]:
    with database.begin() as connection:
        listen(connection)
        return keep(connection, body=BODY)


def recorded(database: Database) -> list[str]:
    with database.begin() as connection:
        return list(connection.execute(select(WebhookDelivery.event_type)).scalars())


def finished(reason: FinishReason) -> Answer:
    def answer(request: Request) -> Finished:
        usage = Usage(prompt_tokens=1, completion_tokens=1)
        return Finished(request_id=request.id, choices=[Choice(reason=reason, text="x")], usage=usage)

    return answer


ANSWERS: list[tuple[str, Answer]] = [
    ("response.completed", echo),
    ("response.incomplete", finished(FinishReason.LENGTH)),
    ("response.cancelled", finished(FinishReason.CANCELLED)),
    ("response.failed", lambda request: Failed(request_id=request.id, code="template_error", message="no")),
    ("response.failed", lambda request: EngineLost(request_id=request.id)),
]


@pytest.mark.parametrize(("event_type", "answer"), ANSWERS)
def test_a_worker_records_the_end_and_wakes_a_clerk(
    worker: WorkerContext, engine: ScriptedEngine, valkey: redis.Redis, event_type: str, answer: Answer
) -> None:
    engine.answer = answer
    job_id, _ = kept(worker.database)
    JobRunner(worker).run(job_id)
    assert recorded(worker.database) == [event_type]
    assert tickets_in(valkey, CLERK_QUEUE) == 1


def test_a_job_without_webhooks_wakes_no_clerk(worker: WorkerContext, valkey: redis.Redis) -> None:
    with worker.database.begin() as connection:
        listen(connection)
        job_id, _ = keep(connection, is_background=False, body=BODY)
    JobRunner(worker).run(job_id)
    assert recorded(worker.database) == []
    assert tickets_in(valkey, CLERK_QUEUE) == 0


@pytest.mark.parametrize(("cancel", "event_type"), [(False, "response.failed"), (True, "response.cancelled")])
def test_the_sweeper_records_the_end_of_jobs_whose_workers_died(
    clerk: ClerkContext, settings: Settings, valkey: redis.Redis, cancel: bool, event_type: str
) -> None:
    job_id, response_id = kept(clerk.database)
    with Receiver() as receiver:
        endpoint(clerk.database, receiver.url, ALL)
        for _ in range(settings.job_attempts):
            with clerk.database.begin() as connection:
                lose(connection, job_id, cancel=cancel)
            Sweeper(clerk).sweep()
        assert tickets_in(valkey, CLERK_QUEUE) == 1
        sender = WebhookSender(LOOPBACK)
        WebhookDispatcher(settings, clerk.database, sender, clerk.publisher.publish).deliver_due()
        sender.close()
    (request,) = receiver.received
    event: Any = OpenAI(api_key="any").webhooks.unwrap(request.body, request.headers, secret=SECRET)
    assert (event.type, event.data.id) == (event_type, response_id)
