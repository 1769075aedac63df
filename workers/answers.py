"""OpenAI's chat completion and its stream chunks, as JSON bytes ready to send.

Chunks of one answer differ only in their delta, so all that stays the same is encoded once.
Source of the shapes: OpenAI's API description of chat completions and their streaming.
"""

from __future__ import annotations

import hashlib
import time

import msgspec

from core.errors import INVALID_REQUEST, SERVER_ERROR, Problem
from engine.messages import Failed, Finished, FinishReason, Usage

_encode = msgspec.json.Encoder().encode
_CALLERS_FAULT = frozenset({"context_length_exceeded", "invalid_value", "template_error", "invalid_character"})


def fingerprint(build: str, model_hash: str | None) -> str:
    """`system_fingerprint`: equal where the engine build and the weights are equal."""
    return "fp_" + hashlib.sha256(f"{build}:{model_hash}".encode()).hexdigest()[:12]


def completion(job_id: str, model: str, system_fingerprint: str, finished: Finished) -> str:
    """The whole answer, as a plain request gets it and as the job's row keeps it."""
    return _encode(
        {
            "id": job_id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": system_fingerprint,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": finished.text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": finished.reason,
                }
            ],
            "usage": _usage(finished.usage),
        }
    ).decode()


class ChunkFrames:
    """The frames of one streamed answer."""

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

    def opening(self) -> bytes:
        """The first frame: who speaks."""
        return self._chunk(b'{"role":"assistant","content":"","refusal":null}', b"null")

    def text(self, text: str) -> bytes:
        """Some more of the answer."""
        return self._chunk(b'{"content":' + _encode(text) + b"}", b"null")

    def closing(self, reason: FinishReason, usage: Usage) -> list[bytes]:
        """The last frames: why it ended, and what it used if the caller asked."""
        frames = [self._chunk(b"{}", _encode(reason))]
        if self._include_usage:
            frames.append(self._head + b'],"usage":' + _encode(_usage(usage)) + b"}")
        return frames

    def _chunk(self, delta: bytes, reason: bytes) -> bytes:
        choice = b'{"index":0,"delta":' + delta + b',"logprobs":null,"finish_reason":' + reason + b"}"
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


def _usage(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
