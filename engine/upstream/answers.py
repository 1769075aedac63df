"""Answers of an upstream, whole or in chunks, as the engine's own values.

Servers differ in what they leave out, so every field may be missing or null. A stream without `usage` counts a token for each
chunk with text, and none of the prompt; a whole answer without it counts none. A finish reason that OpenAI does not have is
`stop`, apart from those that mean the limit of tokens, a call, or an error.
Source of the shapes: OpenAI's API description; `reasoning_content` of DeepSeek and vLLM, `reasoning` of OpenRouter.
"""

from __future__ import annotations

import base64
import binascii
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from engine.types import (
    Choice,
    Delta,
    Embedded,
    Finished,
    FinishReason,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from engine.upstream.bodies import (
    Body,
    CallPart,
    ChoicePart,
    FunctionPart,
    LogprobsPart,
    MessagePart,
    TokenPart,
    UsagePart,
    broken,
)

_REASONS: Final = {
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
_MOST_TOKENS: Final = 1 << 30
_ERRORS: Final = frozenset({"abort", "aborted", "error", "cancelled"})


def embedded(request_id: str, body: Body) -> Embedded:
    """The vectors of an answer, in the order of its indices; raises Broken."""
    if body.data is None:
        raise broken("an answer without `data`")
    numbered = sorted(enumerate(body.data), key=lambda each: each[0] if each[1].index is None else each[1].index)
    return Embedded(
        request_id=request_id, vectors=[_floats(each.embedding) for _, each in numbered], usage=_usage(body.usage)
    )


@dataclass(slots=True)
class _Growing:
    """One of the choices so far."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, list[str]] = field(default_factory=dict)  # id, name, then pieces of arguments
    logprobs: list[TokenLogprob] | None = None
    reason: FinishReason | None = None


class Collector:
    """Joins the chunks of an answer. A whole answer is one chunk."""

    def __init__(self, request_id: str) -> None:
        self._id = request_id
        self._choices: dict[int, _Growing] = {}
        self._usage: UsagePart | None = None
        self._num_chunks = 0  # with text, of all choices

    @property
    def is_complete(self) -> bool:
        """Has every choice a finish reason?"""
        return bool(self._choices) and all(choice.reason is not None for choice in self._choices.values())

    def add(self, body: Body, *, is_whole: bool = False) -> list[Delta]:
        """Add a chunk, or with `is_whole` all of an answer, and return what is new; raises Broken."""
        if body.usage is not None:
            self._usage = body.usage
        given = [self._add(position, part, is_whole) for position, part in enumerate(body.choices or ())]
        deltas = [delta for delta in given if delta is not None]
        self._num_chunks += 0 if is_whole else len(deltas)
        return deltas

    def finished(self) -> Finished:
        """The end of the answer; raises Broken if it is not complete."""
        if not self.is_complete:
            raise broken("half an answer")
        return Finished(
            request_id=self._id,
            choices=[_choice(index, self._choices[index]) for index in sorted(self._choices)],
            usage=_usage(self._usage, self._num_chunks),
        )

    def _add(self, position: int, part: ChoicePart, is_whole: bool) -> Delta | None:
        index = position if part.index is None else part.index
        choice = self._choices.setdefault(index, _Growing())
        message = part.delta or part.message or MessagePart()
        text = part.text if part.text is not None else _text(message)
        reasoning = message.reasoning_content or (message.reasoning if isinstance(message.reasoning, str) else "")
        calls = [_call_delta(choice.calls, place, call) for place, call in enumerate(_calls(message))]
        logprobs = None if part.logprobs is None else _logprobs(part.logprobs)
        if text:
            choice.text.append(text)
        if reasoning:
            choice.reasoning.append(reasoning)
        if logprobs is not None:
            choice.logprobs = (choice.logprobs or []) + logprobs
        if part.finish_reason is not None:
            if part.finish_reason in _ERRORS:
                raise broken(f"an answer that it broke off ({part.finish_reason})")
            choice.reason = _REASONS.get(part.finish_reason, FinishReason.STOP)
        elif is_whole:
            choice.reason = FinishReason.STOP
        if not (text or reasoning or calls or logprobs):
            return None
        return Delta(
            request_id=self._id,
            num_tokens=len(logprobs) if logprobs else 1,
            index=index,
            text=text,
            reasoning=reasoning,
            tool_calls=calls,
            logprobs=logprobs or [],
        )


def _choice(index: int, choice: _Growing) -> Choice:
    calls = [
        ToolCall(id=call_id, name=name, arguments="".join(arguments) or "{}")
        for _, (call_id, name, *arguments) in sorted(choice.calls.items())
    ]
    assert choice.reason is not None, "checked before"
    return Choice(
        index=index,
        reason=choice.reason,
        text="".join(choice.text),
        reasoning="".join(choice.reasoning),
        tool_calls=calls,
        logprobs=choice.logprobs,
    )


def _text(message: MessagePart) -> str:
    """The text of a message; a refusal is its text where it has no other."""
    if isinstance(message.content, list):
        parts = (part.get("text") for part in message.content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return message.content or message.refusal or ""


def _calls(message: MessagePart) -> Sequence[CallPart]:
    if message.tool_calls:
        return message.tool_calls
    return () if message.function_call is None else (CallPart(index=0, function=message.function_call),)


def _call_delta(calls: dict[int, list[str]], place: int, call: CallPart) -> ToolCallDelta:
    """Add a part of a call; ids and names count once, since some servers repeat them in each chunk."""
    index = call.index
    if index is None:
        is_new = bool(call.id) and all(call.id != known[0] for known in calls.values())
        index = len(calls) if is_new or not calls else max(place, len(calls) - 1)
    function = call.function or FunctionPart()
    arguments = function.arguments
    if arguments is not None and not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    if index in calls:
        call_id = name = ""
    else:
        call_id, name = call.id or f"call_{index}", function.name or ""
        calls[index] = [call_id, name]
    calls[index].append(arguments or "")
    return ToolCallDelta(index=index, id=call_id, name=name, arguments=arguments or "")


def _logprobs(given: LogprobsPart) -> list[TokenLogprob] | None:
    if given.tokens is not None:
        count = len(given.tokens)
        logprobs = [*(given.token_logprobs or ()), *[None] * count]
        tops = [*(given.top_logprobs or ()), *[None] * count]
        return [
            TokenLogprob(
                piece=token.encode(),
                logprob=logprob or 0.0,
                top=[TokenLogprob(piece=other.encode(), logprob=value) for other, value in (top or {}).items()],
            )
            for token, logprob, top in zip(given.tokens, logprobs, tops, strict=False)
        ]
    tokens = given.content if given.content is not None else given.refusal
    return None if tokens is None else [_token(token) for token in tokens]


def _token(token: TokenPart) -> TokenLogprob:
    piece = token.token.encode(errors="replace")
    if token.bytes and all(0 <= byte < 256 for byte in token.bytes):
        piece = bytes(token.bytes)
    top = [_token(each) for each in token.top_logprobs or ()]
    return TokenLogprob(piece=piece, logprob=token.logprob or 0.0, top=top)


def _floats(embedding: list[float] | str) -> bytes:
    """Little-endian float32, which is what base64 holds, too."""
    if isinstance(embedding, str):
        try:
            return base64.b64decode(embedding, validate=True)
        except binascii.Error:
            raise broken("an embedding that is not base64") from None
    floats = array("f", embedding)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tobytes()


def _usage(usage: UsagePart | None, num_chunks: int = 0) -> Usage:
    if usage is None:
        return Usage(prompt_tokens=0, completion_tokens=num_chunks)
    of_prompt, of_completion = usage.prompt_tokens_details, usage.completion_tokens_details
    prompt = _limited(usage.prompt_tokens, _MOST_TOKENS)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=_limited(usage.completion_tokens, _MOST_TOKENS),
        cached_tokens=_limited(None if of_prompt is None else of_prompt.cached_tokens, prompt),
        reasoning_tokens=_limited(None if of_completion is None else of_completion.reasoning_tokens, _MOST_TOKENS),
    )


def _limited(number: int | None, most: int) -> int:
    """Limit a count of a server, which may be any number: the tables of the service refuse what cannot be."""
    return min(max(0, number or 0), most)
