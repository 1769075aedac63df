"""Call forms: the forms of tools and tool calls in which a chat template may accept a conversation.

OpenAI's clients send the arguments of a call as JSON text, and may leave out the description and the parameters of a function.
Most templates expect arguments as an object, some expect text, and some require every field of a function.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from engine.inputs.content_forms import Message

ToolObject = dict[str, Any]  # Any: OpenAI's tool object

_NO_PARAMETERS: Final = {"type": "object", "properties": {}}


def call_forms(messages: list[Message], tools: list[ToolObject]) -> Iterator[tuple[list[Message], list[ToolObject]]]:
    """Yield the messages and tools in different forms, the one that most templates accept first.

    Arguments that are not JSON stay text, until no form with text is left: a call may have been cut off, and the conversation
    must go on.
    """
    parsed = _with_arguments(messages, _parsed)
    yield parsed, tools
    complete = [_complete(tool) for tool in tools]
    if complete != tools:
        yield parsed, complete
    written = _with_arguments(messages, _written)
    if written != parsed:
        yield written, complete
    objects = _with_arguments(messages, _as_object)
    if objects != parsed:
        yield objects, complete


def _with_arguments(messages: list[Message], convert: Callable[[Any], Any]) -> list[Message]:  # Any: JSON
    if not any(message.get("tool_calls") for message in messages):
        return messages
    messages = copy.deepcopy(messages)
    for message in messages:
        for call in message.get("tool_calls") or ():
            if isinstance(function := call.get("function"), dict):
                function["arguments"] = convert(function.get("arguments"))
    return messages


def _parsed(arguments: Any) -> Any:  # Any: JSON
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        return _from_json(arguments or "{}", allow_inf_nan=False)
    except ValueError:
        return arguments


def _written(arguments: Any) -> str:  # Any: JSON
    if isinstance(arguments, str):
        return arguments
    return json.dumps({} if arguments is None else arguments, ensure_ascii=False)


def _as_object(arguments: Any) -> dict[str, Any]:  # Any: JSON
    """Read what is there of an object that was cut off; without one, the result is empty."""
    try:
        value = _from_json(arguments, allow_partial="trailing-strings") if isinstance(arguments, str) else arguments
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _from_json(text: str, **options: Any) -> Any:  # Any: keywords of the library, and JSON
    from pydantic_core import from_json  # an eighth of the time in which an engine starts, for histories with calls

    return from_json(text, **options)


def _complete(tool: ToolObject) -> ToolObject:
    """Add the fields that the definition of a function may leave out, and the descriptions of its parameters."""
    if not isinstance(function := tool.get("function"), dict):
        return tool
    parameters = function.get("parameters") or _NO_PARAMETERS
    if isinstance(properties := parameters.get("properties"), dict):
        described = {
            name: {"description": "", **schema} if isinstance(schema, dict) else schema
            for name, schema in properties.items()
        }
        parameters = {**parameters, "properties": described}
    return {**tool, "function": {"description": "", **function, "parameters": parameters}}
