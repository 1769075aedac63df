"""Tickets that are made without Celery: Celery itself sends the same message."""

from __future__ import annotations

import base64
import json
from typing import Any

import redis

from core.queue.celery_app import make_sender
from core.queue.names import RUN_CHAT, chat_queue
from core.queue.ticket_message import ticket_message
from core.queue.tickets import Tickets
from core.settings import Settings

QUEUE = chat_queue("fake")


def plain(raw: bytes) -> Any:
    """A message with its body decoded, and without the ids that are new in each."""
    message = json.loads(raw)
    headers, properties = message["headers"], message["properties"]
    assert headers["id"] == headers.pop("root_id") == properties.pop("correlation_id")
    assert {len(headers.pop("id")), len(properties.pop("delivery_tag"))} == {36}
    del properties["reply_to"]  # of a sender that waits for results
    message["body"] = json.loads(base64.b64decode(message["body"]))
    return message


def test_a_ticket_is_the_message_that_celery_sends(valkey: redis.Redis, settings: Settings) -> None:
    assert Tickets(make_sender(settings)).run_chat("chatcmpl-1", "fake")
    sent: Any = valkey.rpop(settings.key_prefix + QUEUE)
    assert plain(ticket_message(RUN_CHAT, "chatcmpl-1", QUEUE)) == plain(sent)
