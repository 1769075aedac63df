"""Schemas of chat completions and their chunks for `/openapi.json`; a contract test compares the workers' output with them."""

from __future__ import annotations

from typing import Literal

from core.schemas.objects import ResponseModel, Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class CalledFunction(ResponseModel):
    """The function to call; `arguments` is JSON, unless the answer was cut off inside it."""

    name: str
    arguments: str


class ToolCall(ResponseModel):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(ResponseModel):
    """Message of the model; `content` is null when it only calls tools."""

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
    """The sampled token, and the most likely ones in its place."""

    top_logprobs: list[TokenLogprob]


class Logprobs(ResponseModel):
    """One entry per token of the content."""

    content: list[ChosenLogprob] | None
    refusal: None


class ChatChoice(ResponseModel):
    """One of the `n` choices."""

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
