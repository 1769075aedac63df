"""Events of a running job, from its worker over pub/sub and a short replay list.

An event carries finished OpenAI frames (the JSON of each chunk), so the relay forwards them without parsing. `seq` numbers
frames: the first frame of an event has its `seq`, the next one `seq + 1`; the event that ends a job has the number after the
last frame.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from core.errors import Problem


class EventKind(StrEnum):
    """FRAMES carry text; each of the others ends the job, after the commit of its row."""

    FRAMES = "frames"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A message on a job's channel. `attempt` is the fence of the claim: each generation has its own."""

    job: str
    attempt: int
    seq: int
    kind: EventKind
    frames: list[bytes] = []
    problem: Problem | None = None


def outcome_event(row_id: str) -> Event:
    """Return the event that announces the outcome of a validation or a webhook test, to publish after the commit of its row."""
    return Event(job=row_id, attempt=0, seq=0, kind=EventKind.DONE)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Encode an event to the bytes that are published."""
    return _encoder.encode(event)


def decode_event(data: bytes) -> Event:
    """Decode an event. Raises `msgspec.MsgspecError`."""
    return _decoder.decode(data)
