"""The tools a chat may call, and the choice between them: OpenAI's shapes, within our limits.

Knows nothing of how a model calls them; what a schema may say is the engine's to judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import Discriminator, Field, StringConstraints, Tag, field_validator, model_validator

from core.schemas.base import RequestModel, Unsupported

MAX_TOOLS: Final = 128
MAX_SCHEMAS_BYTES: Final = 64 << 10
MAX_SCHEMA_DEPTH: Final = 32  # of JSON, about twice that of schemas

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionDefinition(RequestModel):
    """A function as the model is told of it; without `parameters` it takes none."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None  # Any: a JSON schema
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _is_schema_of_an_object(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:  # Any: JSON
        if value is None:
            return value
        if value.get("type", "object") != "object":
            raise ValueError("the schema of a function's parameters has the type 'object'")
        if _depth(value) > MAX_SCHEMA_DEPTH:
            raise ValueError(f"a schema is nested at most {MAX_SCHEMA_DEPTH} levels deep")
        return value


class _OnlyFunctions(RequestModel):
    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, value: object) -> object:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise Unsupported(f"Tools of type '{kind[:32]}' are not supported; use functions.")
        return value


class Tool(_OnlyFunctions):
    """One entry of `tools`."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(RequestModel):
    """Which function."""

    name: ToolName


class NamedTool(_OnlyFunctions):
    """`tool_choice` as an object: this one must be called."""

    type: Literal["function"]
    function: FunctionName


def _kind_of_choice(value: object) -> str:
    return "Tool" if isinstance(value, dict | NamedTool) else "Mode"


# told apart first, so that a complaint is about the one that was meant
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("Mode")] | Annotated[NamedTool, Tag("Tool")],
    Discriminator(_kind_of_choice),
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


def check_tools(tools: Sequence[Tool]) -> None:
    """What no tool can see alone: the size of all schemas, and names used twice. Raises ValueError."""
    size = sum(len(msgspec.json.encode(tool.function.parameters)) for tool in tools)
    if size > MAX_SCHEMAS_BYTES:
        raise ValueError(f"the schemas have {size} bytes together; at most {MAX_SCHEMAS_BYTES} are allowed")
    names = Counter(tool.function.name for tool in tools)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two tools are called '{twice[0]}'")


def check_choice(choice: ToolChoice | None, tools: Sequence[Tool]) -> None:
    """A choice needs something to choose from. Raises ValueError."""
    if choice == "required" and not tools:
        raise ValueError("'required' is only allowed with 'tools'")
    if isinstance(choice, NamedTool) and choice.function.name not in {tool.function.name for tool in tools}:
        raise ValueError(f"'{choice.function.name}' is not in 'tools'")


def _depth(value: object) -> int:
    """Levels of objects and lists, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth - 1
