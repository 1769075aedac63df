"""What processes without a port count: the workers raise these numbers, the api shows them as metrics."""

from __future__ import annotations

from enum import StrEnum


class CounterName(StrEnum):
    """The name of a number that only grows; of a model where it says so."""

    LEASES_LOST = "leases_lost"
    SHARDS_RETRIED = "shards_retried"  # of a model
    LINES_RETRIED = "lines_retried"  # of a model
    LINES_BLOCKED = "lines_blocked"  # of a model
    ENGINE_DEATHS = "engine_deaths"  # of a model
    EVENTS_DROPPED = "events_dropped"
