"""The message of a ticket as `Celery.send_task` would send it: protocol 2 of Celery, in the envelope of kombu's Redis transport.

Celery takes a quarter of a millisecond to make one, which the first token of a chat waits for; this takes a twentieth of that.
A test compares both.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import uuid
from typing import Any, Final

_EMBED: Final[dict[str, Any]] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_DURABLE: Final = 2


def ticket_message(task: str, argument: str, queue: str) -> bytes:
    """Return the entry of the queue's list that runs a task with one argument."""
    task_id = str(uuid.uuid4())
    body = json.dumps([[argument], {}, _EMBED]).encode()
    headers: dict[str, object] = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": f"['{argument}']",
        "kwargsrepr": "{}",
        "origin": f"gen{os.getpid()}@{socket.gethostname()}",
        "ignore_result": None,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": "",
        "delivery_mode": _DURABLE,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps(message).encode()
