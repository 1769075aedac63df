"""Server-sent events as bytes, in OpenAI's stream format.

On `/v1/chat/completions` there are no `id:` lines: after one, the decoders of clients take a comment block for an event.
"""

from __future__ import annotations

from typing import Final

import msgspec

from core.errors import Problem

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"
PING_WITH_IDS: Final = b": ping\n"  # decoders would take a blank line for the end of an event

_encode = msgspec.json.Encoder().encode


def data_events(frames: list[bytes]) -> bytes:
    """Events without ids."""
    return b"".join([b"data: " + frame + b"\n\n" for frame in frames])


def numbered_events(seq: int, frames: list[bytes]) -> bytes:
    """Events whose ids are the frames' numbers."""
    return b"".join([b"id: %d\ndata: %b\n\n" % (seq + index, frame) for index, frame in enumerate(frames)])


def error_event(problem: Problem) -> bytes:
    """The event of a stream that fails after its beginning; SDKs raise on it."""
    return b"data: " + _encode(problem.envelope()) + b"\n\n"
