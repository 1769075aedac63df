"""F24: consumers that receive no tickets though the broker takes them, and a clerk without a broker still do their work.

Celery never runs here, so what is done is done without it.
"""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import func, select, update

from core import ids
from core.queue.celery_app import make_sender
from core.queue.tickets import Tickets
from core.settings import Settings
from core.states import BatchState, JobState
from db import batches, jobs, validations
from db.tables import Batch, Job
from tests.service.workers.batches.test_clerk import answer_everything, batch_of, line, upload
from tests.support.contexts import with_settings
from tests.support.rows import make_job, make_running_batch
from tests.support.scripted_engine import ScriptedEngine
from tests.support.stack import wait_for
from workers.consumers.base import Consumer
from workers.consumers.batch import BatchConsumer
from workers.consumers.chat import ChatConsumer
from workers.consumers.clerk import ClerkConsumer
from workers.context import ClerkContext, WorkerContext

ASKING = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "x"}]})
QUICK = {"sweep_seconds": 0.1, "ticket_seconds": 0.2, "poll_seconds": 0.1}


@pytest.fixture
def started() -> Iterator[list[Consumer]]:
    """Consumers that the fixture drains and closes in the end."""
    consumers: list[Consumer] = []
    yield consumers
    for consumer in consumers:
        consumer.drain(abort=True)
        wait_for(consumer.is_idle, "nothing runs any more", 20)
        consumer.close()


@pytest.fixture
def nowhere(clerk: ClerkContext) -> Iterator[ClerkContext]:
    """A clerk whose broker is down."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    app = make_sender(clerk.settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}/0"}))
    yield dataclasses.replace(clerk, tickets=Tickets(app))
    app.close()


@pytest.fixture
def hints(settings: Settings) -> redis.Redis:
    """The client of the listeners."""
    return redis.Redis.from_url(settings.redis_url or "")  # not closed: the listeners end a little later


def run_to_the_end(clerk: ClerkContext, consumer: Consumer, valkey: redis.Redis) -> None:
    """Run a batch, whose lines this test answers, and a validation to their ends."""
    batch_id = upload(clerk, line("a"))
    validation_id = ask(clerk, batch_id)
    consumer.start()
    wait_for(lambda: batch_of(clerk, batch_id).status == BatchState.IN_PROGRESS, "it is prepared", 20)
    answer_everything(clerk)
    with clerk.database.begin() as connection:
        batches.begin_finalizing(batch_id).fetch_optional(connection)
    wait_for(lambda: batch_of(clerk, batch_id).status == BatchState.COMPLETED, "it is finalized", 20)
    wait_for(lambda: is_answered(clerk, validation_id), "the question is answered", 60)


def answers(worker: WorkerContext) -> list[str]:
    with worker.database.begin() as connection:
        bodies = connection.execute(select(Job.answer)).scalars()
        return [json.loads(body or "")["choices"][0]["message"]["content"] for body in bodies]


def ask(clerk: ClerkContext, batch_id: str) -> str:
    question = {"id": ids.new_id(ids.VALIDATION), "file_id": batch_of(clerk, batch_id).input_file_id}
    with clerk.database.begin() as connection:
        connection.execute(validations.insert_validation(**question, tenant_id="default", endpoint=None))
    return question["id"]


def is_answered(clerk: ClerkContext, validation_id: str) -> bool:
    with clerk.database.begin() as connection:
        report, failure = validations.find_result(validation_id).fetch_one(connection)
    assert failure is None
    return report is not None


def test_a_clerk_without_tickets_prepares_and_finalizes(
    clerk: ClerkContext, celery_app: Celery, valkey: redis.Redis, started: list[Consumer]
) -> None:
    clerk = with_settings(clerk, **QUICK)
    started.append(ClerkConsumer(celery_app, clerk))
    run_to_the_end(clerk, started[0], valkey)
    assert valkey.llen("millrace:clerk") > 0, "tickets were sent"


def test_a_clerk_without_a_broker_prepares_and_finalizes(
    nowhere: ClerkContext, celery_app: Celery, valkey: redis.Redis, started: list[Consumer]
) -> None:
    """F18: at once, without waiting for tickets."""
    nowhere = with_settings(nowhere, **{**QUICK, "ticket_seconds": 2})
    started.append(ClerkConsumer(celery_app, nowhere))
    batch_id = upload(nowhere, line("a"))
    with nowhere.database.begin() as connection:
        connection.execute(update(Batch).values(dispatched_at=func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 3)))
    started[0].start()
    wait_for(lambda: batch_of(nowhere, batch_id).status == BatchState.IN_PROGRESS, "it is prepared", 20)
    with nowhere.database.begin() as connection:
        age: Any = connection.execute(select(func.now() - Batch.created_at)).scalar_one()
    assert age.total_seconds() < 8, "long before the ticket counts as unanswered"


def test_a_chat_worker_without_tickets_takes_overdue_jobs_even_if_tickets_were_sent(
    worker: WorkerContext, celery_app: Celery, hints: redis.Redis, started: list[Consumer], engine: ScriptedEngine
) -> None:
    worker = with_settings(worker, **QUICK)
    with worker.database.begin() as connection:
        job_id = make_job(connection, "fake", ASKING)
    started.append(ChatConsumer(celery_app, worker, hints))
    started[0].start()

    def is_answered() -> bool:
        with worker.database.begin() as connection:  # as a sweeper does
            connection.execute(jobs.mark_jobs_dispatched([job_id]))
            return connection.execute(select(Job.state)).scalar_one() == JobState.COMPLETED

    wait_for(is_answered, "it is answered", 20)
    assert answers(worker) == ["x"]
    assert len(engine.asked) == 1, "it is asked once"


def test_a_batch_worker_without_tickets_takes_shards(
    worker: WorkerContext, celery_app: Celery, hints: redis.Redis, started: list[Consumer], engine: ScriptedEngine
) -> None:
    worker = with_settings(worker, **QUICK)
    with worker.database.begin() as connection:
        make_running_batch(connection, [2])
        connection.execute(update(Job).values(body=ASKING))
    consumer = BatchConsumer(celery_app, worker, hints)
    started.append(consumer)
    consumer.add_model(worker.models["fake"])
    consumer.start()

    def states() -> set[JobState]:
        with worker.database.begin() as connection:
            return set(connection.execute(select(Job.state)).scalars())

    wait_for(lambda: states() == {JobState.COMPLETED}, "its lines are answered", 20)
    assert answers(worker) == ["x", "x"]
    assert len(engine.asked) == 2, "each line is asked once"
