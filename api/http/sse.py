"""Server-sent events as bytes, and the chunks of an answer that is already whole. Knows OpenAI's stream format.

On `/v1/chat/completions` there are no `id:` lines: once a client's decoder has seen one, it takes a comment block for an event.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
    """The frames of a stored answer: all of what is said, why it ended; then what was used if asked for.

    An answer that is no text, of which there is no stream, is one frame.
    """
    body: dict[str, Any] = json.loads(answer)  # Any: an answer of ours, which says what it is
    if body["object"] not in _STREAMED:
        return [answer.encode()]
    head = {name: body[name] for name in ("id", "created", "model", "system_fingerprint")}
    head["object"], cut = _STREAMED[body["object"]]
    usage = {"usage": None} if include_usage else {}
    frames = [_encode({**head, "choices": [choice], **usage}) for whole in body["choices"] for choice in cut(whole)]
    return [*frames, _encode({**head, "choices": [], "usage": body["usage"]})] if include_usage else frames


def _chat_choices(whole: dict[str, Any]) -> list[dict[str, Any]]:  # Any: JSON
    """A choice as the three of its chunks: who speaks, what is said, why it ended.

    What the message does not have is left out of its delta.
    """
    message = whole["message"]
    said = {name: value for name in ("reasoning_content", "content") if (value := message.get(name)) is not None}
    if calls := message.get("tool_calls"):
        said["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    return [
        _chunk_choice(whole["index"], {"role": "assistant", "content": "", "refusal": None}),
        _chunk_choice(whole["index"], said, logprobs=whole["logprobs"]),
        _chunk_choice(whole["index"], {}, reason=whole["finish_reason"]),
    ]


def _chunk_choice(
    index: int, delta: dict[str, Any], *, logprobs: Any = None, reason: str | None = None
) -> dict[str, Any]:  # Any: JSON
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _text_choices(whole: dict[str, Any]) -> list[dict[str, Any]]:  # Any: JSON
    """A choice as two of its kind: the text, and why it ended."""
    said = {**whole, "finish_reason": None}
    return [said, {**whole, "text": "", "logprobs": None}]


# what an answer is called as a whole: what each chunk is called, and how a choice is cut into chunks
_STREAMED: Final[dict[str, tuple[str, Callable[[dict[str, Any]], list[dict[str, Any]]]]]] = {  # Any: JSON
    "chat.completion": ("chat.completion.chunk", _chat_choices),
    "text_completion": ("text_completion", _text_choices),
}
