"""Tool formats: a table of the ways in which models write tool calls, and the detection of a model's format.

The grammar (`engine.outputs.tool_grammar`) and the parser (`engine.outputs.tool_parser`) both use this table, so the parser
accepts every text that the grammar allows. An answer with calls has the layout

    text  begin  open NAME middle ARGUMENTS close  (separator  open NAME middle ARGUMENTS close)…  end
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.errors import InvalidPrompt
from engine.types import Request, ToolMode

_MENTIONS_TOOLS: Final = re.compile(r"\btools\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One format. `marks` are its parts that a vocabulary may contain as one token.

    `trigger`: the mark at the beginning of a call. Text may precede it; in a format without one, calls are the whole answer.
    `separator`: None for a model that makes one call per answer.
    `prelude`: a mark that may precede the whole answer.
    """

    name: str
    open: str
    middle: str
    close: str
    begin: str = ""
    separator: str | None = None
    end: str = ""
    trigger: str = ""
    prelude: str = ""
    marks: tuple[str, ...] = ()
    has_short_ids: bool = False

    @property
    def lead(self) -> str:
        """Text before the name of the first call."""
        return self.begin + self.open

    def new_call_id(self) -> str:
        """Make a random id; Mistral's templates accept only nine letters and digits."""
        return secrets.token_hex(5)[:9] if self.has_short_ids else f"call_{secrets.token_hex(12)}"


HERMES: Final = ToolFormat(
    name="hermes",
    open='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    close="}\n</tool_call>",
    separator="\n",
    trigger="<tool_call>",
    marks=("<tool_call>", "</tool_call>"),
)
LLAMA3: Final = ToolFormat(
    name="llama3",
    open='{"name": "',
    middle='", "parameters": ',
    close="}",
    prelude="<|python_tag|>",
    marks=("<|python_tag|>",),
)
MISTRAL: Final = ToolFormat(
    name="mistral",
    begin="[TOOL_CALLS][",
    open='{"name": "',
    middle='", "arguments": ',
    close="}",
    separator=", ",
    end="]",
    trigger="[TOOL_CALLS]",
    marks=("[TOOL_CALLS]",),
    has_short_ids=True,
)
MISTRAL_ARGS: Final = ToolFormat(
    name="mistral-args",
    open="[TOOL_CALLS]",
    middle="[ARGS]",
    close="",
    separator="",
    trigger="[TOOL_CALLS]",
    marks=("[TOOL_CALLS]", "[ARGS]"),
    has_short_ids=True,
)
GENERIC: Final = ToolFormat(name="generic", open='{"name": "', middle='", "arguments": ', close="}", separator="\n")
FORMATS: Final = (HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, GENERIC)


def detect_tool_format(template: str, special_texts: Collection[str]) -> ToolFormat:
    """Detect the format by the marks of a chat template, then by those of the vocabulary."""
    if HERMES.trigger in template:
        return HERMES
    if MISTRAL.trigger in template:
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if LLAMA3.prelude in template or LLAMA3.prelude in special_texts or '"parameters": ' in template:
        return LLAMA3
    return GENERIC


def shows_tools(template: str) -> bool:
    """Does the template show tools to the model?"""
    return _MENTIONS_TOOLS.search(template) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call. With `is_strict`, schema keywords that cannot be enforced are errors, not ignored."""

    name: str
    parameters: Mapping[str, Any]  # Any: a JSON schema
    is_strict: bool = False


def callable_tools(request: Request, tools: list[dict[str, Any]]) -> list[Tool]:  # Any: OpenAI's tool objects
    """Return the tools that an answer to the request may call; raises InvalidPrompt for objects that are not tools."""
    choice = request.tool_choice
    if choice.mode is ToolMode.NONE:
        return []
    try:
        parsed = [_tool(tool["function"]) for tool in tools]
    except (KeyError, TypeError):
        raise InvalidPrompt("A tool is not a function with a name.", param="tools") from None
    allowed = [tool for tool in parsed if choice.name in (None, tool.name)]
    if choice.mode is ToolMode.REQUIRED and not allowed:
        raise InvalidPrompt("'tool_choice' asks for a tool that is not in 'tools'.", param="tool_choice")
    return allowed


def _tool(function: dict[str, Any]) -> Tool:  # Any: JSON
    return Tool(
        name=function["name"], parameters=function.get("parameters") or {}, is_strict=bool(function.get("strict"))
    )
