"""Shapes that chat completions and text completions share: usage, stream chunks, and a whole completion cut into chunks.

Workers encode the chunks of a running job with it, the api those of a stored answer.
Source of the shapes: OpenAI's API description of chat completions, completions and their streaming.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

CHAT_COMPLETION: Final = "chat.completion"
CHAT_CHUNK: Final = "chat.completion.chunk"
TEXT_COMPLETION: Final = "text_completion"  # of a whole answer and of its chunks

ROLE_DELTA: Final = b'{"role":"assistant","content":"","refusal":null}'  # the first delta of each choice
EMPTY_DELTA: Final = b"{}"  # the last one, beside the finish reason
NULL: Final = b"null"

_HEADER_FIELDS: Final = ("id", "object", "created", "model", "system_fingerprint")
_encode = msgspec.json.Encoder().encode


class ChunkEncoder:
    """Encodes the chunks of one stream. They differ only in their choice, so the rest is encoded once."""

    def __init__(self, header: Mapping[str, object], *, include_usage: bool) -> None:
        self._prefix = _encode(header)[:-1] + b',"choices":['
        self._suffix = b'],"usage":null}' if include_usage else b"]}"
        self._include_usage = include_usage

    def chunk(self, choice: bytes) -> bytes:
        """A chunk with one choice."""
        return self._prefix + choice + self._suffix

    def usage_chunks(self, usage: Mapping[str, object]) -> list[bytes]:
        """The chunk that ends a stream and has no choice; none if the client did not ask for usage."""
        return [self._prefix + b'],"usage":' + _encode(usage) + b"}"] if self._include_usage else []


def chat_choice(index: int, delta: bytes, *, logprobs: bytes = NULL, finish_reason: bytes = NULL) -> bytes:
    """The choice of a chat chunk; all but the index is encoded JSON."""
    return b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (index, delta, logprobs, finish_reason)


def text_choice(index: int, text: str, *, logprobs: object = None, finish_reason: str | None = None) -> bytes:
    """The choice of a text completion's chunk."""
    return _encode({"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason})


def tool_call(call_id: str, name: str, arguments: str) -> dict[str, object]:
    """A tool call of a message; a delta adds its index."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def usage_object(
    *, prompt_tokens: int, completion_tokens: int, cached_tokens: int, reasoning_tokens: int
) -> dict[str, object]:
    """`usage` of generated text."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def chunks_of(answer: str, *, include_usage: bool) -> list[bytes]:
    """Cut a stored answer into the chunks of a stream; an answer that has no stream (embeddings) is one frame."""
    body: dict[str, Any] = json.loads(answer)  # Any: our own JSON, whose `object` names its shape
    if body["object"] not in _STREAMED:
        return [answer.encode()]
    chunk_object, cut = _STREAMED[body["object"]]
    header = {name: body[name] for name in _HEADER_FIELDS} | {"object": chunk_object}
    encoder = ChunkEncoder(header, include_usage=include_usage)
    chunks = [encoder.chunk(choice) for whole in body["choices"] for choice in cut(whole)]
    return chunks + encoder.usage_chunks(body["usage"])


def _cut_chat(whole: dict[str, Any]) -> list[bytes]:  # Any: JSON
    """The role, everything the message has, and the finish reason. A field that the message lacks has no key."""
    index, message = whole["index"], whole["message"]
    delta = {name: value for name in ("reasoning_content", "content") if (value := message.get(name)) is not None}
    if calls := message.get("tool_calls"):
        delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
    return [
        chat_choice(index, ROLE_DELTA),
        chat_choice(index, _encode(delta), logprobs=_encode(whole["logprobs"])),
        chat_choice(index, EMPTY_DELTA, finish_reason=_encode(whole["finish_reason"])),
    ]


def _cut_text(whole: dict[str, Any]) -> list[bytes]:  # Any: JSON
    """The text, and the finish reason."""
    index = whole["index"]
    return [
        text_choice(index, whole["text"], logprobs=whole["logprobs"]),
        text_choice(index, "", finish_reason=whole["finish_reason"]),
    ]


# by the `object` of a whole answer: the `object` of its chunks, and the function that cuts a choice
_STREAMED: Final[dict[str, tuple[str, Callable[[dict[str, Any]], list[bytes]]]]] = {  # Any: JSON
    CHAT_COMPLETION: (CHAT_CHUNK, _cut_chat),
    TEXT_COMPLETION: (TEXT_COMPLETION, _cut_text),
}
