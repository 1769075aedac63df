"""Values that go in and out of the residency policy. Times are seconds of the clock that gives `decide` its `now`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NEVER: Final = float("-inf")


class ResidentState(StrEnum):
    """A resident model loads, serves, or takes no new work and leaves."""

    LOADING = "loading"
    READY = "ready"
    RETIRING = "retiring"


class RetireHow(StrEnum):
    """DRAIN: running requests and lines end. ABORT: running chats end, lines are given back at the next step."""

    DRAIN = "drain"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The times of the policy, in seconds.

    The minimum residence of a model is `min_residence_seconds`, or `min_residence_loads` times as long as its load took.
    """

    min_residence_seconds: float = 30.0
    min_residence_loads: float = 10.0
    chat_patience_seconds: float = 20.0
    batch_patience_seconds: float = 300.0
    batch_turn_seconds: float = 10.0
    retry_seconds: float = 30.0
    max_retry_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServableModel:
    """A model that this launcher may load. `num_bytes` is its need of memory, estimated or measured."""

    name: str
    num_bytes: int
    is_eager: bool = False
    is_pinned: bool = False
    keep_alive_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A model in memory. `last_used_at` is of chats and lines alike; being loaded for a chat or an admin counts as a chat.

    `retiring` is the way in which a RETIRING model leaves. `is_elsewhere`: another device has it in memory too.
    `is_unwanted` asks for its retirement: an admin unloads or reloads it, or its file was changed or removed.
    """

    name: str
    num_bytes: int
    state: ResidentState
    ready_at: float = NEVER
    load_seconds: float = 0.0
    num_chats: int = 0
    num_lines: int = 0
    last_chat_at: float = NEVER
    last_used_at: float = NEVER
    retiring: RetireHow | None = None
    is_elsewhere: bool = False
    is_unwanted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Work that waits for a model: for one that is not resident, and shards of a resident one that are left to be taken.

    `waiting_since` is the time of the oldest waiting chat or of an admin's request to load. `batch_priority` is the highest
    priority of batches with shards to take; None without any. `is_further`: another device has the model, and this one, which
    has nothing to do, is to help it.
    """

    name: str
    waiting_since: float | None = None
    batch_priority: int | None = None
    is_further: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """Load this model: its bytes are free."""

    name: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Retire this model. A model that is being drained may be named again, to abort its lines."""

    name: str
    how: RetireHow


Action = Load | Retire


def room_for(model: ServableModel, models: list[ServableModel], budget: int) -> int:
    """Return the bytes that this model can have at most: all that pinned models leave. It never fits if it needs more."""
    return budget - sum(each.num_bytes for each in models if each.is_pinned and each.name != model.name)
