"""Names of queues, tasks and channels. A message carries an id and nothing else."""

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


def chat_queue(model: str) -> str:
    """Tickets of single jobs of a model."""
    return f"chat.{model}"


def batch_queue(model: str) -> str:
    """Tickets that say: this model has shards to run."""
    return f"batch.{model}"


def job_channel(job_id: str) -> str:
    """The pub/sub channel of a job's events."""
    return f"job:{job_id}"


def replay_key(job_id: str) -> str:
    """The short list that serves a subscriber who came late."""
    return f"replay:{job_id}"
