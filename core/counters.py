"""Names of counters that processes without a port raise in the database, and the api shows as metrics."""

from __future__ import annotations

from enum import StrEnum


class CounterName(StrEnum):
    """The name of a number that only grows; some have one value for each model."""

    LEASES_LOST = "leases_lost"
    SHARDS_RETRIED = "shards_retried"  # of a model
    LINES_RETRIED = "lines_retried"  # of a model
    LINES_BLOCKED = "lines_blocked"  # of a model
    ENGINE_DEATHS = "engine_deaths"  # of a model
    MODEL_LOADS = "model_loads"  # of a model
    MODEL_LOAD_FAILURES = "model_load_failures"  # of a model
    MODEL_LOAD_MILLISECONDS = "model_load_milliseconds"  # of a model
    MODEL_UNLOADS = "model_unloads"  # of a model
    PROMPT_TOKENS = "prompt_tokens"  # of a model
    CACHED_PROMPT_TOKENS = "cached_prompt_tokens"  # of a model
    GENERATED_TOKENS = "generated_tokens"  # of a model
    CHATS_COMPLETED = "chats_completed"  # of a model
    CHATS_FAILED = "chats_failed"  # of a model
    CHATS_CANCELLED = "chats_cancelled"  # of a model
    LINES_COMPLETED = "lines_completed"  # of a model
    LINES_FAILED = "lines_failed"  # of a model
    LINES_REJECTED = "lines_rejected"
    LINES_CANCELLED = "lines_cancelled"
    LINES_EXPIRED = "lines_expired"
    BATCHES_COMPLETED = "batches_completed"
    BATCHES_FAILED = "batches_failed"
    BATCHES_EXPIRED = "batches_expired"
    BATCHES_CANCELLED = "batches_cancelled"
    TICKETS_RESENT = "tickets_resent"
    EVENTS_DROPPED = "events_dropped"
