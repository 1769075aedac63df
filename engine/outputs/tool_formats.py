"""How models spell tool calls: a small table, and which line of it a model follows.

The grammar (`engine.outputs.tool_grammar`) and the parser (`engine.outputs.tool_parser`) both read this table, so the parser
understands everything that the grammar allows. An answer with calls is laid out as

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
    """One spelling. `marks` are the parts of it that a vocabulary may hold as one token.

    `trigger` is the mark a call begins with; text may come before it. Without one, calls are the whole answer.
    `separator` None means that this model makes one call per answer. `prelude` is a mark that may come before everything.
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
        """What comes before the name of the first call."""
        return self.begin + self.open

    def new_call_id(self) -> str:
        """An id nobody has seen; Mistral's templates accept nine letters and digits only."""
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


def detect(template: str, special_texts: Collection[str]) -> ToolFormat:
    """The format a chat template asks for, by the marks it writes, then by those of the vocabulary."""
    if HERMES.trigger in template:
        return HERMES
    if MISTRAL.trigger in template:
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if LLAMA3.prelude in template or LLAMA3.prelude in special_texts or '"parameters": ' in template:
        return LLAMA3
    return GENERIC


def shows_tools(template: str) -> bool:
    """Does this template tell the model about its tools?"""
    return _MENTIONS_TOOLS.search(template) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function the model may call. `is_strict` refuses schema keywords that cannot be enforced instead of ignoring them."""

    name: str
    parameters: Mapping[str, Any]  # Any: a JSON schema
    is_strict: bool = False


def callable_tools(request: Request, tools: list[dict[str, Any]]) -> list[Tool]:  # Any: OpenAI's tool objects
    """The tools this request's answer may call; raises InvalidPrompt for objects that are not tools."""
    choice = request.tool_choice
    if choice.mode is ToolMode.NONE:
        return []
    try:
        known = [_tool(tool["function"]) for tool in tools]
    except (KeyError, TypeError):
        raise InvalidPrompt("A tool is not a function with a name.", param="tools") from None
    named = [tool for tool in known if choice.name in (None, tool.name)]
    if choice.mode is ToolMode.REQUIRED and not named:
        raise InvalidPrompt("'tool_choice' asks for a tool that is not in 'tools'.", param="tool_choice")
    return named


def _tool(function: dict[str, Any]) -> Tool:  # Any: JSON
    return Tool(
        name=function["name"], parameters=function.get("parameters") or {}, is_strict=bool(function.get("strict"))
    )
