"""Turns a chat body into an engine request, with the defaults of the model file filled in."""

from __future__ import annotations

from typing import Any

import msgspec

from core.ids import derive_seed
from core.models.model_files import ModelConfig, Parameters
from core.schemas.chat import ChatRequest, Message
from core.schemas.generation import GenerationBody, effective_sampling
from core.schemas.response_format import ResponseFormat, StructuredOutputs
from core.schemas.tools import NamedTool
from engine.types import ChatPrompt, Constraint, ConstraintKind, Priority, Request, SamplingParams, ToolChoice, ToolMode


def to_engine_request(
    job_id: str, chat: ChatRequest, model: ModelConfig, *, tenant: str, priority: Priority, group: str = ""
) -> Request:
    """The engine request of a chat. Batch lines are never streamed."""
    return Request(
        id=job_id,
        prompt=ChatPrompt(
            messages=[_message(message) for message in chat.messages],
            tools=[tool.model_dump(exclude_unset=True) for tool in chat.tools or ()],
            template_kwargs=dict(chat.chat_template_kwargs or {}),
            add_generation_prompt=chat.add_generation_prompt is not False,
            continue_final_message=bool(chat.continue_final_message),
        ),
        sampling=sampling_of(chat, model.parameters, job_id),
        max_tokens=chat.max_answer_tokens or model.parameters.max_tokens,
        n=chat.n or 1,
        stop=chat.stop_strings,
        ignore_eos=bool(chat.ignore_eos),
        constraint=constraint_of(chat),
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        tool_choice=tool_choice_of(chat),
        parallel_tool_calls=chat.parallel_tool_calls is not False,
        stream=bool(chat.stream) and priority is Priority.CHAT,
        priority=priority,
        tenant=tenant,
        group=group,
    )


def _message(message: Message) -> dict[str, Any]:  # Any: the fields a template may use
    """A message for the template. Templates use `system`, not OpenAI's newer `developer`."""
    role = "system" if message.role == "developer" else message.role
    content = message.content
    parts = [part.model_dump() for part in content] if isinstance(content, list) else content
    fields: dict[str, Any] = {"role": role, "content": parts or ""}
    if message.tool_calls:
        fields["tool_calls"] = message.tool_calls
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            fields[name] = value
    return fields


def constraint_of(body: GenerationBody) -> Constraint | None:
    """The structure that the body demands of the answer, if any."""
    if (outputs := body.structured_outputs) is not None:
        return _structured(outputs)
    match body.response_format:
        case ResponseFormat(type="json_object"):
            return Constraint(kind=ConstraintKind.JSON_OBJECT)
        case ResponseFormat(json_schema=schema) if schema is not None:
            return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=_json(schema.schema_))
    return None


def _structured(outputs: StructuredOutputs) -> Constraint:
    """The constraint of the one field that is set."""
    if outputs.json_ is not None:
        text = outputs.json_ if isinstance(outputs.json_, str) else _json(outputs.json_)
        return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text, param="structured_outputs")
    if outputs.regex is not None:
        return Constraint(kind=ConstraintKind.REGEX, text=outputs.regex)
    if outputs.choice is not None:
        return Constraint(kind=ConstraintKind.CHOICE, text=_json(outputs.choice))
    if outputs.grammar is not None:
        return Constraint(kind=ConstraintKind.GRAMMAR, text=outputs.grammar)
    return Constraint(kind=ConstraintKind.JSON_OBJECT, param="structured_outputs")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def tool_choice_of(chat: ChatRequest) -> ToolChoice:
    """The engine's form of `tool_choice`."""
    match chat.tool_choice:
        case None:
            return ToolChoice()
        case NamedTool(function=function):
            return ToolChoice(mode=ToolMode.REQUIRED, name=function.name)
        case mode:
            return ToolChoice(mode=ToolMode(mode))


def sampling_of(body: GenerationBody, model: Parameters, request_id: str) -> SamplingParams:
    """The request's value, else the model file's, else the neutral one. The seed is derived from the id if neither sets one."""
    seed = body.seed if body.seed is not None else model.seed
    return SamplingParams(
        **effective_sampling(body, model),
        seed=derive_seed(request_id) if seed is None else seed % 2**32,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
    )
