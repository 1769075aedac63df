"""Server-sent events as bytes, in OpenAI's stream format.

On `/v1/chat/completions` there are no `id:` lines: after one, the decoders of clients take a comment block for an event.
"""

from __future__ import annotations

from typing import Final

import msgspec

from core.errors import Problem
from core.strict_json import escape_line_ends

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"
PING_WITH_IDS: Final = b": ping\n"  # decoders would take a blank line for the end of an event

_encode = msgspec.json.Encoder().encode


def encode_event(data: bytes, *, name: str | None = None, event_id: str | None = None) -> bytes:
    """One event of JSON data. Some decoders of clients end a line at Unicode's line ends, so these are escaped."""
    head = b"" if event_id is None else b"id: %b\n" % event_id.encode()
    if name is not None:
        head += b"event: %b\n" % name.encode()
    return b"%bdata: %b\n\n" % (head, escape_line_ends(data))


def data_events(frames: list[bytes]) -> bytes:
    """Events without ids."""
    return b"".join(map(encode_event, frames))


def numbered_events(seq: int, frames: list[bytes]) -> bytes:
    """Events whose ids are the frames' numbers."""
    return b"".join(encode_event(frame, event_id=str(number)) for number, frame in enumerate(frames, seq))


def error_event(problem: Problem) -> bytes:
    """The event of a stream that fails after its beginning; SDKs raise on it."""
    return encode_event(_encode(problem.envelope()))
