"""Translation of a Responses request into the chat body that runs for it, without stored state.

The schema of chats checks the body afterwards; `as_responses_problem` translates its errors back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from core.errors import Problem, bad_request
from core.schemas.responses.items import (
    AnyItem,
    FunctionCall,
    FunctionCallOutput,
    InputMessage,
    InputText,
    OutputMessage,
    Reasoning,
)
from core.schemas.responses.request import LOGPROBS, ChosenTool, FunctionTool, ResponsesRequest, TextFormat

JsonObject = dict[str, Any]  # Any: JSON

_PARAMS: Final = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "tool_choice.function": "tool_choice",
    "logprobs": "include",
}


def chat_body_of(request: ResponsesRequest, history: Sequence[AnyItem] | None = None) -> JsonObject:
    """Build the chat body of a request. `history` has the items before it, oldest first.

    Without a history (a batch line), a request that needs stored responses raises a 400.
    """
    if history is None:
        _refuse_state(request)
    items = [*(history or ()), *input_items(request)]
    _check_calls(items)
    if not items:
        raise bad_request("Invalid value for 'input': it is empty.", code="invalid_value", param="input")
    leading = [{"role": "system", "content": request.instructions}] if request.instructions else []
    body: JsonObject = {"model": request.model, "messages": [*leading, *_messages(items)]}
    for name in ("temperature", "top_p", "user", "parallel_tool_calls"):
        if (value := getattr(request, name)) is not None:
            body[name] = value
    if request.max_output_tokens is not None:
        body["max_completion_tokens"] = request.max_output_tokens
    if request.reasoning is not None and request.reasoning.effort is not None:
        body["reasoning_effort"] = request.reasoning.effort
    if request.text is not None and request.text.format is not None:
        body["response_format"] = _response_format(request.text.format)
    return {**body, **_logprobs(request), **_tools(request)}


def input_items(request: ResponsesRequest) -> list[AnyItem]:
    """Return the input as items; a text is a message of the user."""
    if isinstance(request.input, str):
        return [InputMessage(role="user", content=[InputText(text=request.input)])] if request.input else []
    return list(request.input)


def as_responses_problem(problem: Problem) -> Problem:
    """Translate a problem of the chat body to the names of the request."""
    if problem.param is None:
        return problem
    for name, ours in _PARAMS.items():
        if problem.param == name or problem.param.startswith((f"{name}.", f"{name}[")):
            # the index of a message in the chat is not its index in the input
            param = ours if name == "messages" else ours + problem.param.removeprefix(name)
            break
    else:
        param = problem.param.replace("].function", "]")
    message = problem.message.replace(f"'{problem.param}'", f"'{param}'").replace("'max_tokens'", "'max_output_tokens'")
    return msgspec.structs.replace(problem, param=param, message=message)


def _refuse_state(request: ResponsesRequest) -> None:
    for name in ("previous_response_id", "background"):
        if getattr(request, name):
            message = f"'{name}' needs stored responses, and lines of a batch are not stored."
            raise bad_request(message, code="unsupported_parameter", param=name)


def _check_calls(items: Sequence[AnyItem]) -> None:
    """Check that each output has its call before it."""
    called: set[str] = set()
    for item in items:
        if isinstance(item, FunctionCall):
            called.add(item.call_id)
        elif isinstance(item, FunctionCallOutput) and item.call_id not in called:
            message = f"No tool call found for function call output with call_id {item.call_id[:64]}."
            raise bad_request(message, code="invalid_value", param="input")


def _messages(items: Sequence[AnyItem]) -> list[JsonObject]:
    """Join consecutive reasoning, text and calls into one message of the assistant."""
    messages: list[JsonObject] = []
    turn: JsonObject | None = None
    for item in items:
        if isinstance(item, InputMessage | FunctionCallOutput):
            turn = None
            messages.append(_message_of(item))
            continue
        if turn is None or not _continues(turn, item):
            turn = {"role": "assistant", "content": None}
            messages.append(turn)
        _add(turn, item)
    return messages


def _message_of(item: InputMessage | FunctionCallOutput) -> JsonObject:
    if isinstance(item, FunctionCallOutput):
        return {"role": "tool", "tool_call_id": item.call_id, "content": item.output}
    return {"role": item.role, "content": _content([part.text for part in item.content])}


def _content(texts: Sequence[str]) -> str | list[JsonObject]:
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _continues(turn: JsonObject, item: AnyItem) -> bool:
    """Does the item continue the turn? The order is reasoning, text, calls; any other begins a new turn."""
    match item:
        case FunctionCall():
            return True
        case OutputMessage():
            return turn["content"] is None and "tool_calls" not in turn
        case _:
            return not turn["content"] and "tool_calls" not in turn


def _add(turn: JsonObject, item: AnyItem) -> None:
    match item:
        case Reasoning() if item.text:
            before = turn.get("reasoning_content")
            turn["reasoning_content"] = f"{before}\n{item.text}" if before else item.text
        case OutputMessage():
            turn["content"] = _content([part.text for part in item.content])
        case FunctionCall():
            function = {"name": item.name, "arguments": item.arguments}
            turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})


def _response_format(asked: TextFormat) -> JsonObject:
    if asked.type != "json_schema":
        return {"type": asked.type}
    schema: JsonObject = {"name": asked.name, "schema": asked.schema_}
    for name in ("description", "strict"):
        if (value := getattr(asked, name)) is not None:
            schema[name] = value
    return {"type": "json_schema", "json_schema": schema}


def _logprobs(request: ResponsesRequest) -> JsonObject:
    """Request logprobs by `include`, or by their number."""
    if LOGPROBS not in (request.include or ()) and not request.top_logprobs:
        return {}
    return {"logprobs": True, "top_logprobs": request.top_logprobs or 0}


def _tools(request: ResponsesRequest) -> JsonObject:
    tools, choice = request.tools or [], request.tool_choice
    body: JsonObject = {}
    if isinstance(choice, ChosenTool):
        if choice.type == "allowed_tools":
            names = {each.name for each in choice.tools or ()}
            tools = [tool for tool in tools if tool.name in names]
            body["tool_choice"] = choice.mode
        else:
            body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice is not None:
        body["tool_choice"] = choice
    if tools:
        body["tools"] = [_tool(tool) for tool in tools]
    return body


def _tool(tool: FunctionTool) -> JsonObject:
    """Leave out null values, except within a schema."""
    function = {name: value for name, value in tool.model_dump(exclude={"type"}).items() if value is not None}
    return {"type": "function", "function": function}
