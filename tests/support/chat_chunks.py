"""Schema of a chat stream's chunks, against which tests check them."""

from __future__ import annotations

from typing import Literal

from api.schemas.chat_objects import FinishReason, Logprobs
from core.schemas.objects import ResponseModel, Usage


class ChunkFunction(ResponseModel):
    """A delta of a call: the name comes first, then parts of the arguments."""

    name: str | None = None
    arguments: str | None = None


class ChunkToolCall(ResponseModel):
    """A delta of the call `index`."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: ChunkFunction


class ChunkDelta(ResponseModel):
    """A delta of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ChunkToolCall] | None = None


class ChunkChoice(ResponseModel):
    """A delta of one of `n` answers."""

    index: int
    delta: ChunkDelta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(ResponseModel):
    """An event of a stream. On request, the last one has `usage` and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
