"""API errors of requests that an engine could not run, or that it ran without a usable answer."""

from __future__ import annotations

from typing import Final

import msgspec

from core.errors import (
    INVALID_REQUEST,
    SERVER_ERROR,
    UPSTREAM_ACCOUNT,
    UPSTREAM_NOT_FOUND,
    UPSTREAM_UNAUTHORIZED,
    Problem,
)
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
        "engine_crash",  # of a request that is blocked for earlier crashes; a new crash is `engine_crash()`
    }
)
_NO_ACCESS: Final = (
    UPSTREAM_UNAUTHORIZED,
    "The server that runs this model refused the key of this service, not yours. Ask the operator to check the variable "
    "that `api_key_env` names in the model file, and to run `millrace doctor`.",
)
_NOT_THERE: Final = (
    UPSTREAM_NOT_FOUND,
    "The server that runs this model does not have it under the name in the model file, or lacks this endpoint. "
    "Ask the operator to check `model` and `base_url` there, and to run `millrace doctor`.",
)
_NO_CREDIT: Final = (
    UPSTREAM_ACCOUNT,
    "The server that runs this model wants a payment of the operator of this service. Ask the operator.",
)
# by the status of a server upstream
_OPERATORS_FAULT: Final = {
    401: _NO_ACCESS,
    402: _NO_CREDIT,
    403: _NO_ACCESS,
    404: _NOT_THERE,
    405: _NOT_THERE,
    407: _NO_ACCESS,
}


def to_problem(failed: Failed) -> Problem:
    """The engine's error as an API error: that of a server upstream, 400 where the request is the cause, else 500."""
    if failed.status is not None:
        return _of_upstream(failed, failed.status)
    if failed.code in _CALLERS_FAULT:
        return Problem(status=400, message=failed.message, type=INVALID_REQUEST, code=failed.code, param=failed.param)
    return Problem(status=500, message=failed.message, type=SERVER_ERROR, code=failed.code, param=failed.param)


def _of_upstream(failed: Failed, status: int) -> Problem:
    """The error of a server upstream. The caller's key is right where ours is wrong there, so that is no 401 here."""
    ours = _NO_ACCESS if failed.code == UPSTREAM_UNAUTHORIZED else _OPERATORS_FAULT.get(status)
    if ours is not None:
        code, message = ours
        return Problem(status=502, message=message, type=SERVER_ERROR, code=code)
    return Problem(
        status=status,
        message=failed.message,
        type=failed.kind or (INVALID_REQUEST if status < 500 else SERVER_ERROR),
        code=failed.code,
        param=failed.param,
        retry_seconds=failed.retry_seconds,
    )


def engine_crash() -> Problem:
    """The error of a request during which the engine crashed."""
    message = (
        "The engine stopped while it ran this request. Send it again; if it fails again, the request is the cause."
    )
    return Problem(status=500, message=message, type=SERVER_ERROR, code="engine_crash")


def refused_answer() -> Problem:
    """The error of a line whose answer the database refuses to store."""
    message = "The answer to this request could not be stored. Ask the operator for the log of the worker."
    return Problem(status=500, message=message, type=SERVER_ERROR, code=SERVER_ERROR)


def truncated_problem(result: Finished | Embedded, body: GenerationBody) -> Problem | None:
    """The error of an answer that was cut before it had what the body asks for."""
    is_call = isinstance(body, ChatRequest) and tool_choice_of(body).mode is ToolMode.REQUIRED
    return cut_problem(result, is_call=is_call, is_structure=constraint_of(body) is not None)


def cut_problem(result: Finished | Embedded, *, is_call: bool, is_structure: bool) -> Problem | None:
    """The error of an answer that was cut before it had the structure, or the call of a tool, that was asked for.

    A batch line gets it instead of half a document.
    """
    choices = result.choices if isinstance(result, Finished) else []
    cut = [choice for choice in choices if choice.reason is FinishReason.LENGTH]
    if is_call:
        cut = [choice for choice in cut if not any(_is_whole(call) for call in choice.tool_calls)]
        missing = "it had called a tool, as 'tool_choice' asks"
    elif is_structure:
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
