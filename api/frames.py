"""Server-sent events as bytes, and the chunks of an answer that is already whole. Knows OpenAI's stream format.

On `/v1/chat/completions` there are no `id:` lines: once a client's decoder has seen one, it takes a comment block for an event.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from core.errors import Problem

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"
PING_WITH_IDS: Final = b": ping\n"  # without the blank line that decoders take for the end of an event

_encode = msgspec.json.Encoder().encode


def data_events(frames: list[bytes]) -> bytes:
    """Events without ids."""
    return b"".join([b"data: " + frame + b"\n\n" for frame in frames])


def numbered_events(seq: int, frames: list[bytes]) -> bytes:
    """Events whose ids are the frames' numbers."""
    return b"".join([b"id: %d\ndata: %b\n\n" % (seq + index, frame) for index, frame in enumerate(frames)])


def error_event(problem: Problem) -> bytes:
    """What a stream says when it fails after its beginning; SDKs raise on it."""
    return b"data: " + _encode(problem.envelope()) + b"\n\n"


def chunks_of(answer: str, *, include_usage: bool) -> list[bytes]:
    """The frames of a stored answer: who speaks, all of the text, why it ended, and what it used if asked for."""
    body: dict[str, Any] = json.loads(answer)  # Any: our own chat completion
    choice = body["choices"][0]
    head = {name: body[name] for name in ("id", "created", "model", "system_fingerprint")}
    head["object"] = "chat.completion.chunk"

    def chunk(choices: list[dict[str, Any]], usage: object = None) -> bytes:  # Any: JSON
        return _encode({**head, "choices": choices, **({"usage": usage} if include_usage else {})})

    def delta(value: dict[str, Any], reason: str | None = None) -> bytes:  # Any: JSON
        return chunk([{"index": 0, "delta": value, "logprobs": None, "finish_reason": reason}])

    frames = [
        delta({"role": "assistant", "content": "", "refusal": None}),
        delta({"content": choice["message"]["content"]}),
        delta({}, choice["finish_reason"]),
    ]
    return [*frames, chunk([], body["usage"])] if include_usage else frames
