"""OpenAI's chat completion and its stream chunks, as JSON bytes ready to send.

Chunks of one stream differ only in their choice, so all that stays the same is encoded once.
Source of the shapes: OpenAI's API description of chat completions and their streaming.
"""

from __future__ import annotations

import hashlib
import time
from typing import Final

import msgspec

from core.errors import INVALID_REQUEST, SERVER_ERROR, Problem
from core.schemas.generation import GenerationBody
from engine.types import (
    Choice,
    Delta,
    Embedded,
    Failed,
    Finished,
    FinishReason,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from workers.generation.engine_request import constraint_of

_encode = msgspec.json.Encoder().encode
_LEAST_LOGPROB: Final = -9999.0
_CALLERS_FAULT: Final = frozenset(
    {
        "context_length_exceeded",
        "invalid_value",
        "invalid_schema",
        "template_error",
        "invalid_character",
        "engine_crash",  # of one that is refused for those it made before; what crashed now is `engine_crash()`
    }
)


def fingerprint(build: str, model_hash: str | None, settings_hash: str, template_hash: str | None) -> str:
    """`system_fingerprint`: equal where all of these are equal.

    A template may change alone: where neither the weights nor the model file bring one, it is the engine's own.
    """
    made_by = f"{build}:{model_hash}:{settings_hash}:{template_hash}"
    return "fp_" + hashlib.sha256(made_by.encode()).hexdigest()[:12]


def completion(job_id: str, model: str, system_fingerprint: str, finished: Finished) -> str:
    """The whole answer, as a plain request gets it and as the job's row keeps it."""
    return _encode(
        {
            "id": job_id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": system_fingerprint,
            "choices": [_choice(choice) for choice in finished.choices],
            "usage": _usage(finished.usage),
        }
    ).decode()


class ChunkFrames:
    """The frames of one request's stream: `more` with each delta, then `last`. Each answer begins with who speaks."""

    def __init__(self, job_id: str, model: str, system_fingerprint: str, *, include_usage: bool) -> None:
        head = {
            "id": job_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": system_fingerprint,
        }
        self._head = _encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}' if include_usage else b"]}"
        self._include_usage = include_usage
        self._opened: set[int] = set()

    def more(self, delta: Delta) -> list[bytes]:
        """Some more of an answer."""
        frames = self._opening(delta.index)
        logprobs = _encode(_logprobs(delta.logprobs)) if delta.logprobs else b"null"
        frames.append(self._chunk(delta.index, _delta(delta), logprobs=logprobs))
        return frames

    def last(self, finished: Finished) -> list[bytes]:
        """Why each answer ended, and what all of them used if the caller asked."""
        frames = []
        for choice in finished.choices:
            frames += self._opening(choice.index)
            frames.append(self._chunk(choice.index, b"{}", reason=_encode(choice.reason)))
        if self._include_usage:
            frames.append(self._head + b'],"usage":' + _encode(_usage(finished.usage)) + b"}")
        return frames

    def _opening(self, index: int) -> list[bytes]:
        if index in self._opened:
            return []
        self._opened.add(index)
        return [self._chunk(index, b'{"role":"assistant","content":"","refusal":null}')]

    def _chunk(self, index: int, delta: bytes, *, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
        choice = b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (index, delta, logprobs, reason)
        return self._head + choice + self._tail


def problem_of(failed: Failed) -> Problem:
    """What an engine could not run, as an API error: the caller's fault is a 400."""
    if failed.code in _CALLERS_FAULT:
        return Problem(status=400, message=failed.message, type=INVALID_REQUEST, code=failed.code, param=failed.param)
    return Problem(status=500, message=failed.message, type=SERVER_ERROR, code=failed.code, param=failed.param)


def engine_crash() -> Problem:
    """The engine died with this request in it."""
    message = (
        "The engine stopped while it ran this request. Send it again; if it fails again, the request is the cause."
    )
    return Problem(status=500, message=message, type=SERVER_ERROR, code="engine_crash")


def truncated_problem(outcome: Finished | Embedded, body: GenerationBody) -> Problem | None:
    """A structured answer that was cut off is no answer: what a batch line gets instead of half a document."""
    is_cut = isinstance(outcome, Finished) and any(choice.reason is FinishReason.LENGTH for choice in outcome.choices)
    if not is_cut or constraint_of(body) is None:
        return None
    message = (
        "The answer reached its token limit before it had the structure that was asked for. "
        "Raise 'max_tokens', or shorten the prompt if the model's context is full."
    )
    return Problem(status=422, message=message, code="incomplete_output", param="max_tokens")


# --- parts of the shapes ----------------------------------------------------------------------------------------------


def _choice(choice: Choice) -> dict[str, object]:
    """One answer. Content is null where there are only calls; what an answer does not have has no key."""
    is_only_calls = bool(choice.tool_calls) and not choice.text
    message: dict[str, object] = {
        "role": "assistant",
        "content": None if is_only_calls else choice.text,
        "refusal": None,
    }
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = [_call(call.id, call.name, call.arguments) for call in choice.tool_calls]
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


def _call(call_id: str, name: str, arguments: str) -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_delta(call: ToolCallDelta) -> dict[str, object]:
    """A call's first delta says which it is, the others only go on."""
    if call.id:
        return {"index": call.index, **_call(call.id, call.name, call.arguments)}
    return {"index": call.index, "function": {"arguments": call.arguments}}


def _logprobs(logprobs: list[TokenLogprob]) -> dict[str, object]:
    content = [{**_token(each), "top_logprobs": [_token(top) for top in each.top]} for each in logprobs]
    return {"content": content, "refusal": None}


def _token(token: TokenLogprob) -> dict[str, object]:
    """JSON has no infinity: the least likely are as likely as OpenAI's."""
    return {
        "token": token.piece.decode(errors="replace"),
        "logprob": max(token.logprob, _LEAST_LOGPROB),
        "bytes": list(token.piece),
    }


def _usage(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
