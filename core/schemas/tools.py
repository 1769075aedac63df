"""Schemas of tools and of the choice between them: OpenAI's shapes, with limits. The engine checks the content of schemas."""

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
    """The definition of a function; without `parameters` it takes none."""

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
    """An entry of `tools`."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(RequestModel):
    """The name of a function."""

    name: ToolName


class NamedTool(_OnlyFunctions):
    """`tool_choice` as an object: this function must be called."""

    type: Literal["function"]
    function: FunctionName


def _kind_of_choice(value: object) -> str:
    return "Tool" if isinstance(value, dict | NamedTool) else "Mode"


# the discriminator picks the branch, so that an error is about that branch
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("Mode")] | Annotated[NamedTool, Tag("Tool")],
    Discriminator(_kind_of_choice),
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]


def check_tools(tools: Sequence[Tool]) -> None:
    """Check the size of all schemas together, and that names are unique. Raises ValueError."""
    size = sum(len(msgspec.json.encode(tool.function.parameters)) for tool in tools)
    if size > MAX_SCHEMAS_BYTES:
        raise ValueError(f"the schemas have {size} bytes together; at most {MAX_SCHEMAS_BYTES} are allowed")
    names = Counter(tool.function.name for tool in tools)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two tools are called '{twice[0]}'")


def check_choice(choice: ToolChoice | None, tools: Sequence[Tool]) -> None:
    """Check that the chosen tool exists. Raises ValueError."""
    if choice == "required" and not tools:
        raise ValueError("'required' is only allowed with 'tools'")
    if isinstance(choice, NamedTool) and choice.function.name not in {tool.function.name for tool in tools}:
        raise ValueError(f"'{choice.function.name}' is not in 'tools'")


def _depth(value: object) -> int:
    """Count the levels of objects and lists, without recursion."""
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
