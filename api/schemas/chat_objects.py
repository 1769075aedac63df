"""The chat completion as it is published. Workers write these shapes as bytes; a contract test holds the two together."""

from __future__ import annotations

from typing import Literal

from core.schemas.objects import ResponseModel, Usage

FinishReason = Literal["stop", "length", "tool_calls"]


class CalledFunction(ResponseModel):
    """What a call wants done; `arguments` is JSON, unless the answer was cut in the middle of it."""

    name: str
    arguments: str


class ToolCall(ResponseModel):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(ResponseModel):
    """What the model said; `content` is null where it only called tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class TokenLogprob(ResponseModel):
    """A token, its bytes, and the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TokenLogprob):
    """The token that was chosen, and the likeliest in its place."""

    top_logprobs: list[TokenLogprob]


class Logprobs(ResponseModel):
    """Of every token of the content."""

    content: list[ChosenLogprob] | None
    refusal: None


class ChatChoice(ResponseModel):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(ResponseModel):
    """The answer to `POST /v1/chat/completions`, and the body of a batch's output line."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChunkFunction(ResponseModel):
    """A piece of a call: its name comes first, then its arguments bit by bit."""

    name: str | None = None
    arguments: str | None = None


class ChunkToolCall(ResponseModel):
    """More of the call `index`."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: ChunkFunction


class ChunkDelta(ResponseModel):
    """More of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ChunkToolCall] | None = None


class ChunkChoice(ResponseModel):
    """More of one of `n` answers."""

    index: int
    delta: ChunkDelta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(ResponseModel):
    """One event of a stream. The last one has no choices, and `usage`, where the caller asked for that."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
