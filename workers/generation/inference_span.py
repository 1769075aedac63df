"""Inference spans: one call of a model, by OpenTelemetry's conventions for generative AI.

They have numbers and names, and no text of a prompt or an answer unless the operator asks for it (see docs/tracing.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig
from core.schemas.endpoints import COMPLETIONS_ENDPOINT, EMBEDDINGS_ENDPOINT, INPUT_TOKENS_ENDPOINT
from core.telemetry import names, tracing
from core.telemetry.names import AttributeValue, Kind
from core.telemetry.origin import Origin
from engine.process.client import EngineLost
from engine.types import Choice, Embedded, Failed, Finished
from workers.generation.endpoints.base import EngineOutcome

if TYPE_CHECKING:
    from core.telemetry.sdk import Span

_OPERATIONS: Final = {
    COMPLETIONS_ENDPOINT: "text_completion",
    EMBEDDINGS_ENDPOINT: "embeddings",
    INPUT_TOKENS_ENDPOINT: "count_tokens",
}
_CRASH: Final = "engine_crash"
_encode = msgspec.json.Encoder().encode


def start_inference(
    model: ModelConfig,
    endpoint: str,
    body: Mapping[str, Any],  # Any: JSON
    parent: Origin,
    job_id: str,
) -> Span | None:
    """Begin the span of a call; None while tracing is off."""
    if not tracing.is_on():
        return None
    operation = _OPERATIONS.get(endpoint, "chat")
    attributes: dict[str, AttributeValue] = {
        names.OPERATION: operation,
        names.PROVIDER: "openai" if model.backend is BackendKind.OPENAI else "millrace",
        names.REQUEST_MODEL: model.name,
        names.JOB: job_id,
    }
    for field, name in names.REQUEST_NUMBERS.items():
        value = body.get(field)
        if type(value) is int or type(value) is float:
            attributes[name] = value
    if type(choices := body.get("n")) is int and choices > 1:
        attributes[names.CHOICES] = choices
    if body.get("stream") is True:
        attributes[names.IS_STREAM] = True
    if tracing.captures_content():
        attributes[names.INPUT_MESSAGES] = _input_messages(body)
    return tracing.start_span(f"{operation} {model.name}", parent, kind=Kind.CLIENT, attributes=attributes)


def end_inference(span: Span, outcome: EngineOutcome | None, first_chunk_seconds: float | None = None) -> None:
    """End the span of a call; without an outcome, the call was given back to be made again."""
    if first_chunk_seconds is not None:
        span.set({names.FIRST_CHUNK_SECONDS: first_chunk_seconds})
    if isinstance(outcome, Finished | Embedded):
        usage = outcome.usage
        span.set(
            {
                names.INPUT_TOKENS: usage.prompt_tokens,
                names.OUTPUT_TOKENS: usage.completion_tokens,
                names.CACHED_TOKENS: usage.cached_tokens,
                names.REASONING_TOKENS: usage.reasoning_tokens,
            }
        )
    if isinstance(outcome, Finished):
        span.set({names.FINISH_REASONS: [str(choice.reason) for choice in outcome.choices]})
        if tracing.captures_content():
            span.set({names.OUTPUT_MESSAGES: _encode([_output_message(each) for each in outcome.choices]).decode()})
    if (error := error_type_of(outcome)) is not None:
        span.fail(error)
    span.end()


def error_type_of(outcome: EngineOutcome | None) -> str | None:
    """The `error.type` of a call that failed."""
    if isinstance(outcome, EngineLost):
        return _CRASH
    return outcome.code if isinstance(outcome, Failed) else None


def _input_messages(body: Mapping[str, Any]) -> str:  # Any: JSON
    """The prompt in the form of the conventions, as JSON."""
    prompt = body.get("messages") or [{"role": "user", "content": body.get("prompt") or body.get("input")}]
    messages = []
    for message in prompt:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "content": content}]
        messages.append({"role": message.get("role"), "parts": parts})
    return _encode(messages).decode()


def _output_message(choice: Choice) -> dict[str, object]:
    calls = [{"type": "tool_call", "id": c.id, "name": c.name, "arguments": c.arguments} for c in choice.tool_calls]
    parts = [{"type": "text", "content": choice.text}, *calls]
    return {"role": "assistant", "parts": parts, "finish_reason": str(choice.reason)}
