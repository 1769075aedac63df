"""Tickets that come twice, are malformed or get lost: a worker does its work once."""

from __future__ import annotations

import base64
import json
import pickle
import time
from typing import Any

import pytest

from core import ids
from core.queue.celery_app import make_celery
from core.queue.names import CLERK_QUEUE, RUN_CHAT, batch_queue, chat_queue
from core.queue.tickets import Tickets
from core.settings import Settings
from tests.faults.load import chat_body, check_everyday, new_prompt, start_batch, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack, Role
from tests.support.stack import wait_for

pytestmark = pytest.mark.timeout(90)

_NUM_COPIES = 20
_QUEUES = {Role.CLERK: CLERK_QUEUE, Role.CHAT: chat_queue("fake"), Role.BATCH: batch_queue("fake")}


def settings_of(stack: FaultStack) -> Settings:
    return Settings(redis_url=stack.services.redis_url)


def message(body: bytes, queue: str, *, task: str = RUN_CHAT, content_type: str = "application/json") -> bytes:
    """Return a message as kombu stores it on a list."""
    tag = ids.new_id("t_")
    properties = {
        "correlation_id": tag,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": tag,
    }
    envelope = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8" if content_type.endswith("json") else "binary",
        "content-type": content_type,
        "headers": {"lang": "py", "task": task, "id": tag, "root_id": tag, "argsrepr": "", "kwargsrepr": ""},
        "properties": properties,
    }
    return json.dumps(envelope).encode()


def arguments(*values: object) -> bytes:
    return json.dumps([values, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()


def malformed_messages(queue: str, task: str, finished: str) -> list[bytes]:
    """Return messages that Millrace never sends."""
    return [
        message(arguments(ids.new_id("chatcmpl-")), queue, task=task),
        message(arguments(finished), queue, task=task),
        message(arguments(), queue, task=task),
        message(arguments(1, 2, 3), queue, task=task),
        message(arguments({"a": "\0"}), queue, task=task),
        message(b"{not json", queue, task=task),
        message(arguments("x"), queue, task="millrace.of_a_later_version"),
        message(pickle.dumps(((finished,), {}, {})), queue, task=task, content_type="application/x-python-serialize"),
        b"{not json",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b"null",
    ]


@pytest.mark.parametrize("role", list(_QUEUES))
def test_malformed_messages_are_dropped_and_the_consumer_keeps_running(
    role: Role, stack: FaultStack, oracle: Oracle
) -> None:
    """F26: each kind of malformed message, with a valid ticket behind it that is executed."""
    finished = start_batch(stack, 2)
    assert wait_batch(stack, finished) == "completed"
    process, queue = stack.pid(role), _QUEUES[role]
    task = {Role.CLERK: "millrace.prepare", Role.CHAT: RUN_CHAT, Role.BATCH: "millrace.run_shards"}[role]
    key = settings_of(stack).key_prefix + queue
    for each in malformed_messages(queue, task, finished):
        stack.redis.lpush(key, each)
        wait_for(lambda: not stack.redis.llen(key), f"{each[:60]!r} is consumed", 15)
    check_everyday(stack)
    oracle.check()
    assert stack.find(role).pid == process, "the process did not restart"


def test_a_ticket_delivered_twenty_times_is_executed_once(stack: FaultStack, oracle: Oracle) -> None:
    """F25: of every kind, while its work waits, runs and has ended."""
    tickets = Tickets(make_celery(settings_of(stack)))
    with stack.http() as http:
        job: Any = http.post("/v1/jobs", json=chat_body(new_prompt())).json()
    batch_id = start_batch(stack, 24)
    for _ in range(_NUM_COPIES):
        assert tickets.run_chat(job["id"], "fake")
        assert tickets.prepare(batch_id)
        assert tickets.run_shards("fake")
        assert tickets.finalize(batch_id)
    assert wait_batch(stack, batch_id) == "completed"
    for _ in range(_NUM_COPIES):
        assert tickets.run_chat(job["id"], "fake")
        assert tickets.prepare(batch_id)
        assert tickets.finalize(batch_id)
    lists = [settings_of(stack).key_prefix + queue for queue in _QUEUES.values()]
    wait_for(lambda: not any(stack.redis.llen(each) for each in lists), "every copy is consumed", 20)
    oracle.check()
    assert {row[0] for row in stack.query("SELECT fence FROM shards WHERE batch_id = :id", id=batch_id)} == {1}
    assert [row[0] for row in stack.query("SELECT fence FROM jobs WHERE id = :id", id=job["id"])] == [1]


def test_many_short_tickets_do_not_wait_for_each_other(stack: FaultStack) -> None:
    """The threads of a clerk are free again after milliseconds; at two tickets a second this would take a minute."""
    tickets = Tickets(make_celery(settings_of(stack)))
    key = settings_of(stack).key_prefix + CLERK_QUEUE
    began = time.monotonic()
    for _ in range(120):
        assert tickets.prepare(ids.new_id(ids.BATCH))
    wait_for(lambda: not stack.redis.llen(key), "every ticket is consumed", 90)
    seconds = time.monotonic() - began
    print(f"120 tickets: {seconds:.1f} s")
    assert seconds < 15
