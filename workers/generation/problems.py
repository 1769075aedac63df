"""API errors of requests that an engine could not run, or that it ran without a usable answer."""

from __future__ import annotations

from typing import Final

import msgspec

from core.errors import INVALID_REQUEST, SERVER_ERROR, Problem
from core.schemas.chat import ChatRequest
from core.schemas.generation import GenerationBody
from engine.types import Embedded, Failed, Finished, FinishReason, ToolCall, ToolMode
from workers.generation.engine_request import constraint_of, tool_choice_of

_CALLERS_FAULT: Final = frozenset(
    {
        "context_length_exceeded",
        "invalid_value",
        "invalid_schema",
        "template_error",
        "invalid_character",
        "engine_crash",  # of a request that is blocked for earlier crashes; a new crash is `engine_crash()`
    }
)


def to_problem(failed: Failed) -> Problem:
    """The engine's error as an API error: the status of a server upstream, 400 where the request is the cause, else 500."""
    if failed.status is not None:
        kind = failed.kind or (INVALID_REQUEST if failed.status < 500 else SERVER_ERROR)
        return Problem(status=failed.status, message=failed.message, type=kind, code=failed.code, param=failed.param)
    if failed.code in _CALLERS_FAULT:
        return Problem(status=400, message=failed.message, type=INVALID_REQUEST, code=failed.code, param=failed.param)
    return Problem(status=500, message=failed.message, type=SERVER_ERROR, code=failed.code, param=failed.param)


def engine_crash() -> Problem:
    """The error of a request during which the engine crashed."""
    message = (
        "The engine stopped while it ran this request. Send it again; if it fails again, the request is the cause."
    )
    return Problem(status=500, message=message, type=SERVER_ERROR, code="engine_crash")


def truncated_problem(result: Finished | Embedded, body: GenerationBody) -> Problem | None:
    """The error of an answer that was cut before it had what was asked for: a structure, or a call of a tool.

    A batch line gets it instead of half a document.
    """
    choices = result.choices if isinstance(result, Finished) else []
    cut = [choice for choice in choices if choice.reason is FinishReason.LENGTH]
    if isinstance(body, ChatRequest) and tool_choice_of(body).mode is ToolMode.REQUIRED:
        cut = [choice for choice in cut if not any(_is_whole(call) for call in choice.tool_calls)]
        missing = "it had called a tool, as 'tool_choice' asks"
    elif constraint_of(body) is not None:
        missing = "it had the structure that was asked for"
    else:
        return None
    if not cut:
        return None
    message = (
        f"The answer reached its token limit before {missing}. "
        "Raise 'max_tokens', or shorten the prompt if the model's context is full."
    )
    return Problem(status=422, message=message, code="incomplete_output", param="max_tokens")


def _is_whole(call: ToolCall) -> bool:
    try:
        msgspec.json.decode(call.arguments)
    except msgspec.DecodeError:
        return False
    return True
