"""Bodies of an upstream's answers, whole or in chunks, as JSON has them. Any field may be missing or null."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.upstream.trouble import Broken, Problem, error_answer


class FunctionPart(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: Any = None  # Any: text of JSON, or JSON itself


class CallPart(msgspec.Struct, frozen=True):
    index: int | None = None
    id: str | None = None
    function: FunctionPart | None = None


class MessagePart(msgspec.Struct, frozen=True):
    """A message, or the delta of one."""

    content: str | list[Any] | None = None  # Any: parts of different kinds
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None  # Any: a text; some servers use the name for an object
    tool_calls: list[CallPart] | None = None
    function_call: FunctionPart | None = None


class TokenPart(msgspec.Struct, frozen=True):
    token: str
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[TokenPart] | None = None


class LogprobsPart(msgspec.Struct, frozen=True):
    """Those of a chat (`content`, `refusal`), or those of a text completion."""

    content: list[TokenPart] | None = None
    refusal: list[TokenPart] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class ChoicePart(msgspec.Struct, frozen=True):
    """One of the choices, whole or as a chunk."""

    index: int | None = None
    message: MessagePart | None = None
    delta: MessagePart | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: LogprobsPart | None = None


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None


class UsagePart(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class VectorPart(msgspec.Struct, frozen=True):
    embedding: list[float] | str
    index: int | None = None


class Body(msgspec.Struct, frozen=True):
    """The body of an answer, or a chunk of one."""

    choices: list[ChoicePart] | None = None
    data: list[VectorPart] | None = None
    usage: UsagePart | None = None
    error: Any = None  # Any: an object or a text


_decode = msgspec.json.Decoder(Body).decode


def read_body(data: bytes) -> Body:
    """Decode an answer or a chunk; raises Broken, and for an error inside it the same as for its status."""
    try:
        body = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise broken(f"no JSON of an answer: {error}") from None
    if body.error is not None:
        status = body.error.get("code") if isinstance(body.error, dict) else None
        raise error_answer(status if type(status) is int and 400 <= status < 600 else 502, {}, data)
    return body


def broken(what: str) -> Broken:
    """The trouble of an answer that is not one."""
    return Broken(Problem(message=f"The server of this model sent {what}."))
