"""What a worker tells about a running job, over pub/sub and the short replay list.

An event carries finished OpenAI frames (the JSON of each chunk), so the relay passes them on unread. `seq` numbers frames:
an event's first frame has its `seq`, the next one `seq + 1`; an event that ends the job has the number after the last frame.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from core.errors import Problem


class EventKind(StrEnum):
    """FRAMES carry text; the other three end the job, after its row says the same."""

    FRAMES = "frames"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One message of a job's channel. `attempt` is the fence of the claim: no two generations share one."""

    job: str
    attempt: int
    seq: int
    kind: EventKind
    frames: list[bytes] = []
    problem: Problem | None = None


def outcome_event(row_id: str) -> Event:
    """Announces that the row of a validation or of a webhook test holds its outcome; published after the commit."""
    return Event(job=row_id, attempt=0, seq=0, kind=EventKind.DONE)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """The bytes that are published."""
    return _encoder.encode(event)


def decode_event(data: bytes) -> Event:
    """Raises `msgspec.MsgspecError` for anything that is not an event."""
    return _decoder.decode(data)
