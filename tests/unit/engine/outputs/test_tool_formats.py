"""Tool formats: the detection of a model's format, the texts that its grammar allows, and the calls that the parser finds."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper

from engine.errors import InvalidPrompt
from engine.outputs.reasoning import ReasoningTags
from engine.outputs.tool_formats import (
    FORMATS,
    GENERIC,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    Tool,
    ToolFormat,
    callable_tools,
    detect_tool_format,
)
from engine.outputs.tool_grammar import Layout, with_reasoning, with_tools
from engine.outputs.tool_parser import ToolParser
from engine.types import ChatPrompt, Constraint, ConstraintKind, Request, ToolChoice, ToolMode

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "see http://x.y // z"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Tool(name="get_weather", parameters=CITY)
NOW = Tool(name="now", parameters={})
THINK = ReasoningTags("<think>", "</think>")
MARKS = tuple(sorted({mark for each in FORMATS for mark in each.marks} | {THINK.open, THINK.close}))
each_format = pytest.mark.parametrize("tool_format", FORMATS, ids=lambda each: each.name)


class _Vocabulary:
    """All bytes, an end token, and the marks as control tokens."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"\xff<|end|>", *(b"\xff" + mark.encode() for mark in MARKS))
    special_token_ids = tuple(range(256, 257 + len(MARKS)))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


MARK_IDS = {mark: 257 + index for index, mark in enumerate(MARKS)}
WITH_MARKS = LLTokenizer(TokenizerWrapper(_Vocabulary()))
BYTES = LLTokenizer("byte")


def tokens_of(text: str, marks: dict[str, int]) -> list[int]:
    tokens: list[int] = []
    while text:
        mark = next((mark for mark in marks if text.startswith(mark)), None)
        tokens += [marks[mark]] if mark else text[0].encode()
        text = text.removeprefix(mark) if mark else text[1:]
    return tokens


def accepts(constraint: Constraint, text: str, marks: dict[str, int]) -> bool:
    """Does the grammar allow the whole text as an answer?"""
    assert constraint.kind is ConstraintKind.GRAMMAR
    matcher = LLMatcher(WITH_MARKS if marks else BYTES, LLMatcher.grammar_from_lark(constraint.text), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokens_of(text, marks)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def call(tool_format: ToolFormat, name: str, arguments: str, *, is_first: bool = True) -> str:
    """One call in a format, without the end of all calls."""
    before = tool_format.lead if is_first else f"{tool_format.separator}{tool_format.open}"
    return before + name + tool_format.middle + arguments + tool_format.close


def calls(tool_format: ToolFormat, *given: tuple[str, str]) -> str:
    return "".join(call(tool_format, *each, is_first=n == 0) for n, each in enumerate(given)) + tool_format.end


BERN = ("get_weather", '{"city": "Bern }]\\" <x>"}')
MARKS_OF_BOTH = pytest.mark.parametrize("marks", [{}, MARK_IDS], ids=["spelled out", "as tokens"])


def test_the_format_is_found_by_the_marks_of_the_template_then_of_the_vocabulary() -> None:
    assert detect_tool_format("{{ tools }} <tool_call>", ("<|python_tag|>",)) is HERMES
    assert detect_tool_format("{{ tools }}", ("<|python_tag|>",)) is LLAMA3
    assert detect_tool_format('{{ tools }} {"name": x, "parameters": y}', ()) is LLAMA3
    assert detect_tool_format("{{ tools }}[TOOL_CALLS][", ("[TOOL_CALLS]",)) is MISTRAL
    assert detect_tool_format("{{ tools }}[TOOL_CALLS]{{ name }}[ARGS]", ()) is MISTRAL_ARGS
    assert detect_tool_format("{{ tools }}", ("<s>",)) is GENERIC


@each_format
@MARKS_OF_BOTH
def test_auto_allows_text_and_calls_but_no_broken_call(tool_format: ToolFormat, marks: dict[str, int]) -> None:
    grammar = with_tools(tool_format, [WEATHER, NOW], Layout(tokens=marks), is_required=False, may_repeat=True)
    assert accepts(grammar, "", marks)
    assert accepts(grammar, 'Hello <b>, [x] {"name": "Bob"} – ö', marks)
    assert accepts(grammar, calls(tool_format, BERN), marks)
    assert accepts(grammar, calls(tool_format, ("now", "{}")), marks)
    assert not accepts(grammar, calls(tool_format, ("get_weather", "{}")), marks)
    assert not accepts(grammar, calls(tool_format, ("now", '{"a": 1}')), marks)
    assert not accepts(grammar, calls(tool_format, ("get_weather", '{"city":  "Bern"}')), marks), "no free white space"
    if tool_format.trigger:
        assert accepts(grammar, "Let me see.\n" + calls(tool_format, BERN), marks)
        assert not accepts(grammar, f"so {tool_format.trigger} it", marks)
        assert not accepts(grammar, calls(tool_format, ("unknown", "{}")), marks)


@each_format
@MARKS_OF_BOTH
def test_several_calls_are_written_as_the_format_says_unless_one_was_asked_for(
    tool_format: ToolFormat, marks: dict[str, int]
) -> None:
    two = calls(tool_format, BERN, ("now", "{}"))
    for may_repeat in (True, False):
        grammar = with_tools(
            tool_format, [WEATHER, NOW], Layout(tokens=marks), is_required=False, may_repeat=may_repeat
        )
        assert accepts(grammar, two, marks) is (may_repeat and tool_format.separator is not None)


@each_format
@MARKS_OF_BOTH
def test_required_allows_nothing_but_calls(tool_format: ToolFormat, marks: dict[str, int]) -> None:
    grammar = with_tools(tool_format, [NOW], Layout(tokens=marks), is_required=True, may_repeat=False)
    assert accepts(grammar, calls(tool_format, ("now", "{}")), marks)
    for text in ("", "Hello", "Hello " + calls(tool_format, ("now", "{}")), calls(tool_format, BERN)):
        assert not accepts(grammar, text, marks)


@each_format
@MARKS_OF_BOTH
def test_reasoning_may_come_first_and_is_free(tool_format: ToolFormat, marks: dict[str, int]) -> None:
    one = calls(tool_format, ("now", "{}"))
    for is_required in (True, False):
        for is_inside in (True, False):
            layout = Layout(tokens=marks, reasoning_tags=THINK, starts_in_reasoning=is_inside)
            grammar = with_tools(tool_format, [NOW], layout, is_required=is_required, may_repeat=True)
            reasoning = ("" if is_inside else "<think>") + '\nSo {"name": ["now"]}…\n</think>\n\n'
            assert accepts(grammar, reasoning + one, marks)
            assert accepts(grammar, one, marks) is not is_inside
            assert accepts(grammar, reasoning + "It is late.", marks) is not is_required
            assert not accepts(grammar, reasoning.removesuffix("</think>\n\n"), marks)
            assert not accepts(grammar, reasoning + calls(tool_format, ("now", '{"a": 1}')), marks)


def test_white_space_before_a_thought_has_an_end() -> None:
    layout = Layout(tokens={}, reasoning_tags=THINK)
    for grammar in (
        with_reasoning(Constraint(kind=ConstraintKind.JSON_OBJECT), layout),
        with_tools(HERMES, [NOW], layout, is_required=True, may_repeat=False),
    ):
        matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar.text), log_level=0)
        assert matcher.try_consume_tokens(list(b"\n\n<think>")) == 9
        assert matcher.deep_copy().try_consume_tokens(list(b" ")) == 1
        for space in (b" ", b"\n", b"\t"):
            matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar.text), log_level=0)
            assert matcher.try_consume_tokens(list(space * 99)) <= 2


def test_the_mark_of_a_call_inside_reasoning_is_only_a_word() -> None:
    grammar = with_tools(HERMES, [NOW], Layout(tokens={}, reasoning_tags=THINK), is_required=False, may_repeat=True)
    assert accepts(grammar, "<think>I could <tool_call> it</think>no", {})


ANSWERS = {
    ConstraintKind.JSON_OBJECT: ("", '{"a": [1, {}]}', "[1]"),
    ConstraintKind.JSON_SCHEMA: (json.dumps(CITY), '{"city": "Bern"}', '{"city":"Bern"}'),
    ConstraintKind.REGEX: (r"a/b\/c|\d+", "a/b/c", "a/b"),
    ConstraintKind.CHOICE: ('["yes", "n\\"o"]', 'n"o', "maybe"),
    ConstraintKind.GRAMMAR: ('start: A "}"\nA: /a+/', "aa}", "a"),
}


@pytest.mark.parametrize(("kind", "example"), ANSWERS.items(), ids=ANSWERS.keys())
def test_a_structured_answer_stays_one_after_reasoning_and_beside_tools(
    kind: ConstraintKind, example: tuple[str, str, str]
) -> None:
    text, good, bad = example
    answer = Constraint(kind=kind, text=text)
    thinking = with_reasoning(answer, Layout(tokens={}, reasoning_tags=THINK, starts_in_reasoning=True))
    assert accepts(thinking, f"so…</think>\n\n{good}", {})
    assert not accepts(thinking, f"so…</think>\n\n{bad}", {})
    beside = with_tools(HERMES, [NOW], Layout(tokens={}), is_required=False, may_repeat=True, answer=answer)
    assert accepts(beside, good, {})
    assert accepts(beside, calls(HERMES, ("now", "{}")), {})
    assert not accepts(beside, bad, {})
    assert with_reasoning(answer, Layout(tokens={})) is answer


def test_calls_that_look_like_json_are_not_mixed_with_a_structured_answer() -> None:
    answer = Constraint(kind=ConstraintKind.JSON_OBJECT)
    with pytest.raises(InvalidPrompt, match="tool_choice") as caught:
        with_tools(LLAMA3, [NOW], Layout(tokens={}), is_required=False, may_repeat=True, answer=answer)
    assert caught.value.param == "tools"


def test_keywords_that_cannot_be_enforced_are_ignored_unless_the_tool_is_strict() -> None:
    schema = {"properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}}
    loose = Tool(name="tag", parameters=schema)
    strict = Tool(name="tag", parameters=schema, is_strict=True)
    layout = Layout(tokens={})
    grammar = with_tools(HERMES, [loose], layout, is_required=True, may_repeat=False)
    assert accepts(grammar, calls(HERMES, ("tag", '{"tags": ["a"]}')), {})
    refused = with_tools(HERMES, [strict], layout, is_required=True, may_repeat=False)
    assert "uniqueItems" in LLMatcher(BYTES, LLMatcher.grammar_from_lark(refused.text), log_level=0).get_error()


def test_arguments_are_always_an_object() -> None:
    odd = Tool(name="f", parameters={"type": ["object", "null"], "properties": {"a": {"type": "integer"}}})
    grammar = with_tools(GENERIC, [odd], Layout(tokens={}), is_required=True, may_repeat=False)
    assert accepts(grammar, calls(GENERIC, ("f", '{"a": 1}')), {})
    assert not accepts(grammar, calls(GENERIC, ("f", "null")), {})


@each_format
@pytest.mark.parametrize("seed", range(4))
def test_every_text_of_the_grammar_is_a_call_with_json_arguments(tool_format: ToolFormat, seed: int) -> None:
    """Generate random allowed bytes; quotes and braces are likelier, so that the text ends."""
    chance = random.Random(seed)
    grammar = with_tools(tool_format, [WEATHER, NOW], Layout(tokens={}), is_required=True, may_repeat=True)
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar.text), log_level=0)
    written = bytearray()
    while not (matcher.is_accepting() and (matcher.is_stopped() or chance.random() < 0.5)):
        allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias and token < 256]
        ends = [token for token in allowed if token in b'"}']
        token = chance.choice(ends) if ends and chance.random() < 0.2 else chance.choice(allowed)
        assert matcher.consume_token(token)
        written.append(token)
    content, found = parse(tool_format, list(written.decode()))
    assert content == ""
    assert found
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in found)


# --- the parser -------------------------------------------------------------------------------------------------------


def parse(tool_format: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls, after a check against the streamed deltas."""
    parser = ToolParser(tool_format, ["get_weather", "now"])
    content, streamed = "", dict[int, list[str]]()
    for piece in pieces:
        delta = parser.push(piece)
        content += delta.content
        for call_delta in delta.calls:
            assert bool(call_delta.id) == bool(call_delta.name) == (call_delta.index not in streamed)
            of_call = streamed.setdefault(call_delta.index, [call_delta.id, call_delta.name, ""])
            of_call[2] += call_delta.arguments
    content += parser.finish()
    assert [[each.id, each.name, each.arguments] for each in parser.calls] == list(streamed.values())
    return content, [(each.name, each.arguments) for each in parser.calls]


@each_format
def test_calls_are_parsed_and_nothing_of_their_marks_is_content(tool_format: ToolFormat) -> None:
    given = [BERN] if tool_format.separator is None else [BERN, ("now", "{}")]
    text = calls(tool_format, *given)
    assert parse(tool_format, [text]) == ("", given)
    assert parse(tool_format, list(text)) == ("", given)
    if tool_format.trigger:
        assert parse(tool_format, list("Let me see.\n\n" + text)) == ("Let me see.", given)
    if tool_format.prelude:
        assert parse(tool_format, list(tool_format.prelude + text)) == ("", given)


FRAGMENTS = st.sampled_from(
    [
        *MARKS,
        "\n",
        " ",
        '{"name": "',
        "now",
        '", "arguments": ',
        '", "parameters": ',
        "[",
        "]",
        ", ",
        "{",
        "}",
        "\\",
        "é",
        '"',
    ]
)


@given(st.sampled_from(FORMATS), st.lists(FRAGMENTS, max_size=12), st.lists(st.integers(1, 9), max_size=30))
def test_the_parsed_calls_do_not_depend_on_how_the_text_is_cut(
    tool_format: ToolFormat, fragments: list[str], sizes: list[int]
) -> None:
    text = "".join(fragments)
    pieces, rest = [], text
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    assert parse(tool_format, [*pieces, rest]) == parse(tool_format, [text]) == parse(tool_format, list(text))


@given(st.sampled_from(FORMATS), st.text('ab <>[]{}"\n', max_size=30))
def test_text_without_a_call_is_content_to_the_last_character(tool_format: ToolFormat, text: str) -> None:
    assert parse(tool_format, list(text)) == (text, [])


def test_text_that_only_begins_like_a_call_is_content() -> None:
    for text in (
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        "a <tool_call> b",
        "<tool_c",
        "a <",
    ):
        assert parse(HERMES, list(text)) == (text, [])
    for text in ('{"name": "Bob"}', ' {"name": "no', "{", '{"name": "now", "parameters": 3}'):
        assert parse(LLAMA3, list(text)) == (text, [])


def test_a_call_that_is_cut_off_keeps_the_arguments_so_far() -> None:
    text = calls(HERMES, BERN)
    close = len(HERMES.close)
    assert parse(HERMES, [text[: -close - 4]]) == ("", [("get_weather", BERN[1][:-4])])
    assert parse(HERMES, [text[:-5]]) == ("", [BERN])
    assert parse(HERMES, [text[:20]]) == ("", []), "the name is not complete"


def test_ids_are_new_each_time_and_as_short_as_mistrals_templates_want_them() -> None:
    assert len({HERMES.new_call_id() for _ in range(9)}) == 9
    assert HERMES.new_call_id().startswith("call_")
    assert len(MISTRAL.new_call_id()) == 9
    assert MISTRAL.new_call_id().isalnum()


def ask(choice: ToolChoice, names: tuple[str, ...] = ("a", "b")) -> list[str]:
    tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in names]
    request = Request(id="r", prompt=ChatPrompt(messages=[], tools=tools), tool_choice=choice)
    return [tool.name for tool in callable_tools(request, tools)]


def test_the_choice_of_tools_decides_which_may_be_called() -> None:
    assert ask(ToolChoice()) == ["a", "b"]
    assert ask(ToolChoice(mode=ToolMode.NONE)) == []
    assert ask(ToolChoice(mode=ToolMode.REQUIRED, name="b")) == ["b"]
    for choice in (ToolChoice(mode=ToolMode.REQUIRED, name="c"), ToolChoice(mode=ToolMode.REQUIRED)):
        with pytest.raises(InvalidPrompt) as caught:
            ask(choice, ("a", "b") if choice.name else ())
        assert caught.value.param == "tool_choice"
