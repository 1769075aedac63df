"""Chat completions and the chunks of their streams, as JSON bytes ready to send."""

from __future__ import annotations

from typing import Final

import msgspec

from core.schemas.chunks import (
    CHAT_CHUNK,
    CHAT_COMPLETION,
    EMPTY_DELTA,
    NULL,
    ROLE_DELTA,
    ChunkEncoder,
    chat_choice,
    tool_call,
)
from engine.types import Choice, Delta, Finished, TokenLogprob, ToolCallDelta
from workers.generation.endpoints.base import ResponseHeader, StreamEncoder, to_usage

MIN_LOGPROB: Final = -9999.0  # JSON has no infinity; OpenAI's value for the least likely tokens
_encode = msgspec.json.Encoder().encode


def chat_completion(header: ResponseHeader, finished: Finished) -> str:
    """The whole answer, as a plain request gets it and as the job's row keeps it."""
    return _encode(
        {
            **header.fields(CHAT_COMPLETION),
            "choices": [_choice(choice) for choice in finished.choices],
            "usage": to_usage(finished.usage),
        }
    ).decode()


class ChatStreamEncoder(StreamEncoder):
    """Chunks of one request's stream. The first chunk of each choice names the role."""

    def __init__(self, header: ResponseHeader, *, include_usage: bool) -> None:
        self._chunks = ChunkEncoder(header.fields(CHAT_CHUNK), include_usage=include_usage)
        self._opened: set[int] = set()

    def encode_delta(self, delta: Delta) -> list[bytes]:
        frames = self._opening(delta.index)
        logprobs = _encode(_logprobs(delta.logprobs)) if delta.logprobs else NULL
        frames.append(self._chunks.chunk(chat_choice(delta.index, _delta(delta), logprobs=logprobs)))
        return frames

    def encode_end(self, finished: Finished) -> list[bytes]:
        frames = []
        for choice in finished.choices:
            frames += self._opening(choice.index)
            reason = _encode(choice.reason)
            frames.append(self._chunks.chunk(chat_choice(choice.index, EMPTY_DELTA, finish_reason=reason)))
        return frames + self._chunks.usage_chunks(to_usage(finished.usage))

    def _opening(self, index: int) -> list[bytes]:
        if index in self._opened:
            return []
        self._opened.add(index)
        return [self._chunks.chunk(chat_choice(index, ROLE_DELTA))]


def _choice(choice: Choice) -> dict[str, object]:
    """One answer. Content is null where there are only calls; a field that the answer lacks has no key."""
    is_only_calls = bool(choice.tool_calls) and not choice.text
    message: dict[str, object] = {
        "role": "assistant",
        "content": None if is_only_calls else choice.text,
        "refusal": None,
    }
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = [tool_call(call.id, call.name, call.arguments) for call in choice.tool_calls]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": None if choice.logprobs is None else _logprobs(choice.logprobs),
        "finish_reason": choice.reason,
    }


def _delta(delta: Delta) -> bytes:
    """The JSON of a chunk's `delta`; most hold text and nothing else."""
    if not (delta.reasoning or delta.tool_calls):
        return b'{"content":%b}' % _encode(delta.text)
    fields: dict[str, object] = {}
    if delta.reasoning:
        fields["reasoning_content"] = delta.reasoning
    if delta.text:
        fields["content"] = delta.text
    if delta.tool_calls:
        fields["tool_calls"] = [_call_delta(call) for call in delta.tool_calls]
    return _encode(fields)


def _call_delta(call: ToolCallDelta) -> dict[str, object]:
    """The first delta of a call has its id and name, the others only more arguments."""
    if call.id:
        return {"index": call.index, **tool_call(call.id, call.name, call.arguments)}
    return {"index": call.index, "function": {"arguments": call.arguments}}


def _logprobs(logprobs: list[TokenLogprob]) -> dict[str, object]:
    content = [{**_token(each), "top_logprobs": [_token(top) for top in each.top]} for each in logprobs]
    return {"content": content, "refusal": None}


def _token(token: TokenLogprob) -> dict[str, object]:
    return {
        "token": token.piece.decode(errors="replace"),
        "logprob": max(token.logprob, MIN_LOGPROB),
        "bytes": list(token.piece),
    }
