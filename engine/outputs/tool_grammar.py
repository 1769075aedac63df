"""Tool grammar: write the Lark grammar of an answer that may contain reasoning and tool calls, in llguidance's dialect.

A mark that is one token of the vocabulary is written as that token (`<[id]>`), since no text lexeme can match it. If a
model may spell it out instead, the grammar allows both. Arguments follow the JSON schema of their tool with fixed white
space, so they always parse and have an end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from engine.errors import InvalidPrompt
from engine.outputs.reasoning import ReasoningTags
from engine.outputs.tool_formats import Tool, ToolFormat
from engine.structured.schema import SEPARATORS, close_objects
from engine.types import Constraint, ConstraintKind

_ANY: Final = r"/(.|\n)*/"
_NO_PARAMETERS: Final = {"type": "object", "properties": {}, "additionalProperties": False}
_EMPTY_SCHEMA_KEYS: Final = frozenset({"type", "properties", "required", "title", "description", "$schema"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Options of a grammar that depend on the model and the prompt.

    `tokens`: the marks that are one token, with its id.
    `reasoning_tags`: None for a model without reasoning, and behind a prompt that has closed it.
    `starts_in_reasoning`: the prompt contains the opening tag.
    `thought_end`: the tokens of the closing tag.
    """

    tokens: Mapping[str, int]
    reasoning_tags: ReasoningTags | None = None
    starts_in_reasoning: bool = False
    thought_end: tuple[int, ...] = ()


def with_reasoning(constraint: Constraint, layout: Layout) -> Constraint:
    """Allow unconstrained reasoning before an answer that follows the constraint."""
    if layout.reasoning_tags is None:
        return constraint
    return _grammar(_start("answer", layout), [f"answer: {_embedded(constraint)}"], layout)


def with_tools(
    tool_format: ToolFormat,
    tools: Sequence[Tool],
    layout: Layout,
    *,
    is_required: bool,
    may_repeat: bool,
    answer: Constraint | None = None,
) -> Constraint:
    """Allow text or calls; only calls if `is_required`. `answer` constrains an answer without calls."""
    rules = _calls(tool_format, tools, layout, may_repeat=may_repeat)
    if is_required:
        return _grammar(_start("calls", layout), rules, layout)
    if answer is None:
        text_or_calls = [*rules, *_text_or_calls(tool_format, tools, layout)]
        return msgspec.structs.replace(_grammar(_start("answer", layout), text_or_calls, layout), thought_end=())
    if not tool_format.trigger:
        raise InvalidPrompt(
            "This model's tool calls look like any JSON, so 'tools' cannot be combined with a structured answer; "
            "set 'tool_choice' to 'none' or 'required'.",
            param="tools",
        )
    return _grammar(_start("answer", layout), [*rules, f"answer: calls | {_embedded(answer)}"], layout)


def _grammar(start: str, rules: Sequence[str], layout: Layout) -> Constraint:
    reasoning = _reasoning_rules(layout) if layout.reasoning_tags is not None else []
    lines = ["%llguidance {}", start, *rules, *reasoning, f"ANY: {_ANY}", r"GAP: /\n{1,2}/", ""]
    return Constraint(kind=ConstraintKind.GRAMMAR, text="\n".join(lines), thought_end=layout.thought_end)


def _start(answer: str, layout: Layout) -> str:
    if layout.reasoning_tags is None:
        return f"start: {answer}"
    return (
        f"start: inside GAP? {answer}" if layout.starts_in_reasoning else f"start: {answer} | reasoning GAP? {answer}"
    )


def _calls(tool_format: ToolFormat, tools: Sequence[Tool], layout: Layout, *, may_repeat: bool) -> list[str]:
    """Write the rule `calls`: one or more calls from the first character on, and `rest`: the same without the trigger."""
    literal = _LiteralWriter(tool_format.marks, layout.tokens)
    heads = [tool.name + tool_format.middle for tool in tools]
    separator = tool_format.separator if may_repeat else None
    more = "" if separator is None else f"({literal(separator + tool_format.open)} call)*"
    if tool_format.trigger:
        rules = [
            f"calls: {literal(tool_format.trigger)} rest",
            f"rest: {literal(tool_format.lead.removeprefix(tool_format.trigger))} call {more} {literal(tool_format.end)}",
        ]
    else:
        prelude = f"{literal(tool_format.prelude)}?" if tool_format.prelude in layout.tokens else ""
        rules = [
            f"calls: {prelude} ({_either('first', tools)}) {literal(tool_format.close)} {more}",
            *(f"first_{index}: FIRST_{index} arguments_{index}" for index in range(len(tools))),
            # the whole head is one lexeme: two lexemes would lose against a longer text that begins alike
            *(rf"FIRST_{index}: /\s{{0,2}}/ {_quoted(tool_format.lead + head)}" for index, head in enumerate(heads)),
        ]
    return [
        *rules,
        f"call: ({_either('call', tools)}) {literal(tool_format.close)}",
        *(f"call_{index}: {literal(head)} arguments_{index}" for index, head in enumerate(heads)),
        *(f"arguments_{index}: %json {_schema_of(tool)}" for index, tool in enumerate(tools)),
    ]


def _text_or_calls(tool_format: ToolFormat, tools: Sequence[Tool], layout: Layout) -> list[str]:
    """Write the rule `answer`: any text, but text that begins like a call must be one, and none begins like reasoning."""
    unless = "" if layout.reasoning_tags is None else rf" & ~(/\s*/ {_quoted(layout.reasoning_tags.open)} {_ANY})"
    if tool_format.trigger:
        return [
            "answer: TEXT | lead rest",
            f"TEXT: {_ANY}{unless}",
            *_until("lead", tool_format.trigger, layout, text="TEXT", unless=unless),
        ]
    names = " | ".join(_quoted(tool.name) for tool in tools)
    call = rf"/\s*/ {_quoted(tool_format.lead)} ({names}) {_quoted(tool_format.middle)} {_ANY}"
    return ["answer: TEXT | calls", f"TEXT: {_ANY} & ~({call}){unless}"]


def _reasoning_rules(layout: Layout) -> list[str]:
    """Write the rules `reasoning`: from its opening tag on, and `inside`: from there to its closing tag."""
    assert layout.reasoning_tags is not None, "called only for models with reasoning"
    opening = rf"OPENING: /\s{{0,2}}/ {_quoted(layout.reasoning_tags.open)}"
    token = layout.tokens.get(layout.reasoning_tags.open)
    way_in = "OPENING" if token is None else f"(<[{token}]> | OPENING)"
    return [f"reasoning: {way_in} inside", opening, *_until("inside", layout.reasoning_tags.close, layout, text="ANY")]


def _until(rule: str, mark: str, layout: Layout, *, text: str, unless: str = "") -> list[str]:
    """Write `rule`: all text up to and including the first `mark`, which may be a token or spelled out."""
    token = layout.tokens.get(mark)
    ways = f"{rule}_text" if token is None else f"{text} <[{token}]> | {rule}_text"
    lexeme = f"UNTIL_{rule.upper()}"
    return [
        f"{rule}: {ways}",
        f"{rule}_text[lazy]: {lexeme}",
        f"{lexeme}: ({_ANY} {_quoted(mark)}){unless}",
    ]


def _either(rule: str, tools: Sequence[Tool]) -> str:
    return " | ".join(f"{rule}_{index}" for index in range(len(tools)))


def _quoted(text: str) -> str:
    return json.dumps(text)


class _LiteralWriter:
    """Writes literal text as grammar symbols; a mark that is a token becomes that token."""

    def __init__(self, marks: Sequence[str], tokens: Mapping[str, int]) -> None:
        self._tokens = tokens
        present = [re.escape(mark) for mark in marks if mark in tokens]
        self._marks = re.compile(f"({'|'.join(present)})") if present else None

    def __call__(self, text: str) -> str:
        parts = self._marks.split(text) if self._marks else [text]
        return " ".join(
            f"<[{self._tokens[part]}]>" if part in self._tokens else _quoted(part) for part in parts if part
        )


def _schema_of(tool: Tool) -> str:
    """Write a tool's schema for llguidance. Keywords that cannot be enforced are ignored, unless the tool is strict."""
    schema: Mapping[str, Any] = tool.parameters  # Any: JSON
    if not schema.get("properties") and _EMPTY_SCHEMA_KEYS.issuperset(schema):
        schema = _NO_PARAMETERS
    return _json({**deepcopy(dict(schema)), "type": "object"}, is_lenient=not tool.is_strict)


def _json(schema: Mapping[str, Any], *, is_lenient: bool = False) -> str:  # Any: JSON
    options: dict[str, Any] = dict(SEPARATORS)  # Any: JSON
    if is_lenient:
        options["lenient"] = True
    return json.dumps({**close_objects(dict(schema)), "x-guidance": options}, ensure_ascii=False)


def _embedded(constraint: Constraint) -> str:
    """Write a constraint as the body of a rule."""
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT:
            return f"%json {_json({'type': 'object'})}"
        case ConstraintKind.JSON_SCHEMA:
            schema = json.loads(constraint.text)
            return f"%json {_json(schema) if isinstance(schema, dict) else json.dumps(schema)}"
        case ConstraintKind.REGEX:
            return "/" + re.sub(r"\\.|/", _escaped_slash, constraint.text, flags=re.DOTALL).replace("\n", r"\n") + "/"
        case ConstraintKind.CHOICE:
            return "(" + " | ".join(_quoted(choice) for choice in json.loads(constraint.text)) + ")"
        case ConstraintKind.GRAMMAR:
            return f"%lark {{\n{constraint.text}\n}}"


def _escaped_slash(found: re.Match[str]) -> str:
    return r"\/" if found[0] == "/" else found[0]
