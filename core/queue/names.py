"""Names of queues, tasks and channels. A message carries only an id."""

from __future__ import annotations

from typing import Final

CLERK_QUEUE: Final = "clerk"

PREPARE: Final = "millrace.prepare"
FINALIZE: Final = "millrace.finalize"
DELIVER: Final = "millrace.deliver"
VALIDATE: Final = "millrace.validate"
RUN_SHARDS: Final = "millrace.run_shards"
RUN_CHAT: Final = "millrace.run_chat"

CANCEL_CHANNEL: Final = "cancel"
WATCH_CHANNEL: Final = "watch"
WANTED_CHANNEL: Final = "wanted"


def chat_queue(model: str) -> str:
    """Return the queue of tickets for single jobs of a model."""
    return f"chat.{model}"


def batch_queue(model: str) -> str:
    """Return the queue of tickets for shards of a model."""
    return f"batch.{model}"


def job_channel(job_id: str) -> str:
    """Return the pub/sub channel of a job's events."""
    return f"job:{job_id}"


def replay_key(job_id: str) -> str:
    """Return the key of the replay list, which late subscribers read."""
    return f"replay:{job_id}"
