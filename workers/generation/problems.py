"""API errors of requests that an engine could not run, or that it ran without a usable answer."""

from __future__ import annotations

from typing import Final

from core.errors import INVALID_REQUEST, SERVER_ERROR, Problem
from core.schemas.generation import GenerationBody
from engine.types import Embedded, Failed, Finished, FinishReason
from workers.generation.engine_request import constraint_of

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
    """The engine's error as an API error: 400 where the request is the cause, else 500."""
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
    """The error of a structured answer that was cut off: a batch line gets it instead of half a document."""
    is_cut = isinstance(result, Finished) and any(choice.reason is FinishReason.LENGTH for choice in result.choices)
    if not is_cut or constraint_of(body) is None:
        return None
    message = (
        "The answer reached its token limit before it had the structure that was asked for. "
        "Raise 'max_tokens', or shorten the prompt if the model's context is full."
    )
    return Problem(status=422, message=message, code="incomplete_output", param="max_tokens")
