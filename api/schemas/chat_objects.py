"""The chat completion as it is published. Workers write these shapes as bytes; a contract test holds the two together."""

from __future__ import annotations

from typing import Literal

from core.schemas.objects import Usage, WireObject

FinishReason = Literal["stop", "length", "tool_calls"]


class CalledFunction(WireObject):
    """What a call wants done; `arguments` is JSON, unless the answer was cut in the middle of it."""

    name: str
    arguments: str


class ToolCall(WireObject):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(WireObject):
    """What the model said; `content` is null where it only called tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class TokenLogprob(WireObject):
    """A token, its bytes, and the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TokenLogprob):
    """The token that was chosen, and the likeliest in its place."""

    top_logprobs: list[TokenLogprob]


class Logprobs(WireObject):
    """Of every token of the content."""

    content: list[ChosenLogprob] | None
    refusal: None


class ChatChoice(WireObject):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(WireObject):
    """The answer to `POST /v1/chat/completions`, and the body of a batch's output line."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChunkFunction(WireObject):
    """A piece of a call: its name comes first, then its arguments bit by bit."""

    name: str | None = None
    arguments: str | None = None


class ChunkToolCall(WireObject):
    """More of the call `index`."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: ChunkFunction


class ChunkDelta(WireObject):
    """More of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ChunkToolCall] | None = None


class ChunkChoice(WireObject):
    """More of one of `n` answers."""

    index: int
    delta: ChunkDelta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(WireObject):
    """One event of a stream. The last one has no choices, and `usage`, where the caller asked for that."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
