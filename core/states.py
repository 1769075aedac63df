"""The states of jobs, batches and shards, the moves between them, and the rules of their leases.

The CHECKs of `db.tables` repeat which states are final, and each move is one conditional UPDATE of `db`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """A job is queued, runs under a lease, and ends once.

    A batch line is never RUNNING: its shard has the lease, so it goes from QUEUED to its end in one write.
    """

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class BatchState(StrEnum):
    """The statuses of OpenAI's batches; `BATCH_MOVES` has their order."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class ShardState(StrEnum):
    """READY may be claimed, RUNNING is under a lease, DONE has no line left to run."""

    READY = "ready"
    RUNNING = "running"
    DONE = "done"


class EngineState(StrEnum):
    """An engine as its launcher reports it: LOADING until its worker serves it; FAILED if it does not start, MISSING if it
    does not since a file of the model is not there. Both last until it has started. UNLOADED is not in memory, and loads when
    a request needs it.
    """

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    MISSING = "missing"


class ModelAction(StrEnum):
    """A request of an admin concerning a model; RELOAD is UNLOAD, then LOAD, and PIN also is LOAD."""

    LOAD = "load"
    UNLOAD = "unload"
    RELOAD = "reload"
    PIN = "pin"
    UNPIN = "unpin"


JOB_MOVES: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}
    ),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}

BATCH_MOVES: Final[dict[BatchState, frozenset[BatchState]]] = {
    BatchState.VALIDATING: frozenset({BatchState.IN_PROGRESS, BatchState.FAILED, BatchState.CANCELLING}),
    BatchState.IN_PROGRESS: frozenset({BatchState.FINALIZING, BatchState.CANCELLING}),
    BatchState.FINALIZING: frozenset({BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLING}),
    BatchState.CANCELLING: frozenset({BatchState.CANCELLED}),
    BatchState.COMPLETED: frozenset(),
    BatchState.FAILED: frozenset(),
    BatchState.EXPIRED: frozenset(),
    BatchState.CANCELLED: frozenset(),
}

FINAL_JOB_STATES: Final = tuple(state for state, moves in JOB_MOVES.items() if not moves)
FINAL_BATCH_STATES: Final = tuple(state for state, moves in BATCH_MOVES.items() if not moves)

LOST_LEASES: Final = 3  # leases of a row that may be lost before its lines are suspected of it


def trust_seconds(lease_seconds: float) -> float:
    """Return how long a holder may begin new work after a renewal *began*: shorter than the lease, by its own clock."""
    return max(lease_seconds * 0.75, lease_seconds - 15)


def is_suspicious(attempt: int) -> bool:
    """Has a row lost so many leases that it may be the cause? `attempt` counts the present claim."""
    return attempt > LOST_LEASES
