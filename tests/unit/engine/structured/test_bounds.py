"""Numbers in JSON end where a double holds no more of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from llguidance import LLTokenizer
from llguidance._tokenizer import TokenizerWrapper

from engine.outputs.reasoning import ReasoningTags
from engine.outputs.tool_formats import FORMATS, HERMES, Tool
from engine.outputs.tool_grammar import Layout, with_reasoning, with_tools
from engine.structured.bounds import REPEATED_ITEM_TOKENS, REPEATED_TOKENS
from engine.structured.compiler import GrammarCompiler
from engine.structured.grammar import Grammar
from engine.types import Constraint, ConstraintKind
from tests.support.constrain import END, accepts, allowed_tokens, constraint, make_grammars


@pytest.fixture(scope="module")
def grammars() -> Iterator[GrammarCompiler]:
    grammars = make_grammars(jump_forward=False)
    yield grammars
    grammars.close()


def of(grammars: GrammarCompiler, schema: object) -> Grammar:
    return grammars.compile(constraint("json_schema", schema))


def endless(grammar: Grammar, begin: str, then: str, *, most: int = 3000) -> str:
    """The answer of a model that repeats one text, and ends things where it may not go on."""
    state = grammar.start()
    answer = bytearray()
    for wanted in [*begin.encode(), *then.encode() * most]:
        if not state.allows(wanted):
            break
        answer.append(wanted)
        state.accept(wanted)
    while not state.is_finished and len(answer) < most:
        allowed = allowed_tokens(state)
        wanted = next((token for token in (*b'"}],', END) if token in allowed), allowed[0])
        if wanted == END:
            break
        answer.append(wanted)
        state.accept(wanted)
    return answer.decode()


NUMBER = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
LONG = "".join(map(str, range(1000, 1060)))
INTEGER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("begin", "digit"), [('{"n": 1', "0"), ('{"n": -', "9"), ('{"n": 3.', "1"), ('{"n": 0.', "0"), ('{"n": 1e', "0")]
)
@pytest.mark.parametrize(
    "asked",
    [
        NUMBER,
        {"type": "object", "properties": {"n": {}}, "required": ["n"]},
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        {"type": "object", "properties": {"n": {"anyOf": [{"type": "number"}, {"type": "boolean"}]}}},
    ],
    ids=json.dumps,
)
def test_digits_end(asked: object, begin: str, digit: str, grammars: GrammarCompiler) -> None:
    answer = endless(of(grammars, asked), begin, digit)
    assert len(answer) < 40
    assert abs(json.loads(answer)["n"]) != float("inf")


def test_digits_end_in_any_object_and_in_the_arguments_of_a_tool(grammars: GrammarCompiler) -> None:
    anything = grammars.compile(constraint("json_object"))
    assert len(endless(anything, '{"n": 3.', "1")) < 40
    pay = Tool(name="pay", parameters={"properties": {"amount": {"type": "number"}}, "required": ["amount"]})
    for tool_format in FORMATS:
        asked = with_tools(tool_format, [pay], Layout(tokens={}), is_required=True, may_repeat=False)
        begin = f'{tool_format.lead}pay{tool_format.middle}{{"amount": 1'
        answer = endless(grammars.compile(asked, is_internal=True), begin, "0")
        assert answer.count("0") < 20 < len(answer)


@pytest.mark.parametrize(
    "bound",
    [{"minimum": 0}, {"exclusiveMaximum": 0.5}, {"minimum": -2.5, "maximum": 1e6}, {"minimum": 0.1, "maximum": 0.9}],
    ids=json.dumps,
)
def test_the_digits_of_a_number_with_bounds_end_too(bound: dict[str, float], grammars: GrammarCompiler) -> None:
    grammar = of(grammars, {"type": "object", "properties": {"n": {"type": "number", **bound}}, "required": ["n"]})
    answer = endless(grammar, '{"n": 0.', "4")
    assert len(answer) < 40
    assert json.loads(answer)["n"] == pytest.approx(4 / 9)


@pytest.mark.parametrize("begin", ['{"n": 1', '{"n": -7'])
def test_the_digits_of_an_integer_end(begin: str, grammars: GrammarCompiler) -> None:
    for schema in (INTEGER, {**INTEGER, "properties": {"n": {"type": "integer", "multipleOf": 1}}}):
        assert isinstance(json.loads(endless(of(grammars, schema), begin, "0"))["n"], int)


@pytest.mark.parametrize(
    "number",
    [
        *(repr(number) for number in (0.1 + 0.2, 5e-324, 1.7976931348623157e308, 1.2345678901234567e-05, -1e16)),
        *(
            "0.00012345678901234567",
            "9007199254740993",
            "-9223372036854775808",
            "18446744073709551615",
            "6.62607015E-34",
        ),
    ],
)
def test_every_double_and_every_64_bit_integer_may_be_written(number: str, grammars: GrammarCompiler) -> None:
    assert accepts(of(grammars, NUMBER), f'{{"n": {number}}}')


@pytest.mark.parametrize(
    "number", ["1e309", "1e400", "123e307", "1e0000", "123456789012345678901", "0.123456789012345678901"]
)
def test_a_number_that_no_double_holds_is_not_written(number: str, grammars: GrammarCompiler) -> None:
    assert not accepts(of(grammars, NUMBER), f'{{"n": {number}}}')


class _WithLongTokens:
    """Bytes, an end token and two tokens of several characters."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"\xff<|end|>", b"000", b"00}")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def test_tokens_of_several_digits_end_at_the_same_digit() -> None:
    tokenizer = LLTokenizer(TokenizerWrapper(_WithLongTokens()))
    grammars = GrammarCompiler(lambda: tokenizer, num_vocab=259, jump_forward=False)
    state = grammars.compile(constraint("json_schema", NUMBER)).start()
    for token in [*b'{"n": 1', 257, 257, 257, 257, 257, *b"00"]:
        assert state.allows(token)
        state.accept(token)
    allowed = {token: state.allows(token) for token in (257, 258, ord("0"), ord("."), ord("e"))}
    assert allowed == {257: False, 258: True, ord("0"): True, ord("."): True, ord("e"): True}
    state.accept(ord("0"))
    state.accept(ord("0"))
    assert not state.allows(ord("0"))
    assert not state.allows(258)
    assert state.allows(ord("}"))
    grammars.close()


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"const": 10**25}, "10000000000000000000000000"),
        ({"enum": [10**25, 1]}, "10000000000000000000000000"),
        ({"type": "integer", "minimum": 10**17, "multipleOf": 10}, "100000000000000000"),
        ({"type": "number", "minimum": 1e17}, "1000000000000000000"),
        ({"type": "string"}, f'"{LONG}"'),
        ({"type": "string", "pattern": "^[0-9]+$"}, f'"{LONG}"'),
        ({"type": "string", "pattern": "^[0-9]{100}$"}, '"' + "12345" * 20 + '"'),
        ({"type": "string", "maxLength": 60}, '"1e' + "9" * 50 + '"'),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_the_limits_give_way_to_what_a_schema_asks_for(schema: object, answer: str, grammars: GrammarCompiler) -> None:
    assert accepts(of(grammars, schema), answer)


def test_digits_of_a_regex_or_a_grammar_are_its_authors_choice(grammars: GrammarCompiler) -> None:
    for kind, text in (("regex", "[0-9]+"), ("grammar", "start: /[0-9]+/")):
        assert accepts(grammars.compile(constraint(kind, text)), "1" * 100)


TEXTS = {"type": "array", "items": {"type": "string"}}
NESTED = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
REPETITIONS = {
    "empty strings": (TEXTS, "[", '"", '),
    "numbers without an end": ({"type": "array", "items": {"type": "number"}}, "[", "1" * 20 + ", "),
    "items": (TEXTS, "[", '"a flour mill", '),
    "numbers": ({"type": "array", "items": {"type": "number"}}, "[", "0, "),
    "objects": ({"type": "array", "items": {"type": "object"}}, "[", '{"a": [1]}, '),
    "lists": ({"type": "array", "items": {"type": "array"}}, "[", "[], "),
    "keys": ({"type": "object", "additionalProperties": {"type": "integer"}}, "{", '"a": 1, '),
    "keys of a pattern": (
        {"type": "object", "patternProperties": {"^x": {}}, "additionalProperties": False},
        "{",
        '"x": null, ',
    ),
    "depth": (NESTED, "", '{"next": '),
    "lists in lists": ({"type": "array", "items": {}}, "", "["),
    "words": ({"type": "string"}, '"', "again and "),
    "white space": ({"type": "string"}, '"', " "),
    "line breaks": ({"type": "string"}, '"', "\\n"),
    "spaces and breaks": ({"type": "string"}, '"', "\\n\\t"),
    "backslashes": ({"type": "string"}, '"', "\\\\"),
    "code points": ({"type": "string"}, '"', "\\u0000"),
    "letters of two bytes": ({"type": "string"}, '"', "é"),
    "digits in a string": ({"type": "string", "pattern": "^[0-9]+$"}, '"', "0"),
    "words in an object": (
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "null"}}, "required": ["a", "b"]},
        '{"a": "',
        "ha",
    ),
    "any object": ({"type": "object"}, "{", '"a": {}, '),
    "a tree": (
        {
            "$defs": {
                "t": {
                    "anyOf": [
                        {"type": "null"},
                        {
                            "type": "object",
                            "properties": {"l": {"$ref": "#/$defs/t"}},
                            "required": ["l"],
                            "additionalProperties": False,
                        },
                    ]
                }
            },
            "$ref": "#/$defs/t",
        },
        "",
        '{"l": ',
    ),
}


@pytest.mark.parametrize(("schema", "begin", "then"), REPETITIONS.values(), ids=REPETITIONS.keys())
def test_what_repeats_without_a_bound_is_led_to_its_end(
    schema: dict[str, Any], begin: str, then: str, grammars: GrammarCompiler
) -> None:
    answer = endless(of(grammars, schema), begin, then)
    items = {"empty strings", "numbers without an end", "items", "numbers", "objects", "lists"}
    kind = next(kind for kind, case in REPETITIONS.items() if case == (schema, begin, then))
    least = REPEATED_ITEM_TOKENS if kind in items else REPEATED_TOKENS
    assert least <= len(answer.encode()) < least + 300
    assert jsonschema_rs.is_valid(schema, json.loads(answer))


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({**TEXTS, "minItems": 500}, json.dumps(["a"] * 500)),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 300, "maxItems": 400}, json.dumps([0] * 300)),
        ({"type": "string", "minLength": 900}, json.dumps("-" * 900)),
        ({"type": "array", "items": {"type": "integer"}}, json.dumps(list(range(900)))),
        (TEXTS, json.dumps(["a"] * 90)),
        ({"type": "array"}, json.dumps([[0] * 8] * 15)),
        ({"type": "array"}, json.dumps([{"a": {"b": 0}, "c": 1}] * 18)),
        ({"type": "string"}, json.dumps("=" * 120)),
        ({"type": "object"}, json.dumps({str(key): "the same text" for key in range(100)})),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_a_schema_demands_and_what_differs_may_be_long(
    schema: object, answer: str, grammars: GrammarCompiler
) -> None:
    assert accepts(of(grammars, schema), answer)


@pytest.mark.parametrize("num_before", range(4))
@pytest.mark.parametrize("then", ["\\n", "\\u0000", "a\\\\", 'b\\" '])
def test_a_string_is_closed_between_two_escapes(then: str, num_before: int, grammars: GrammarCompiler) -> None:
    answer = endless(of(grammars, {"type": "string"}), '"' + "x" * num_before, then)
    assert len(answer) < 400
    assert isinstance(json.loads(answer), str)


def test_the_same_tool_may_be_called_several_times(grammars: GrammarCompiler) -> None:
    roll = Tool(name="roll", parameters={"properties": {"sides": {"type": "integer"}}})
    asked = with_tools(HERMES, [roll], Layout(tokens={}), is_required=True, may_repeat=True)
    grammar = grammars.compile(asked, is_internal=True)
    call = '<tool_call>\n{"name": "roll", "arguments": {"sides": 6}}\n</tool_call>'
    assert accepts(grammar, "\n".join([call] * 6))
    assert len(endless(grammar, call, f"\n{call}")) < 1000


@pytest.mark.parametrize("inside", [False, True])
def test_a_thought_that_repeats_itself_is_closed_before_json_or_a_call(inside: bool, grammars: GrammarCompiler) -> None:
    layout = Layout(
        tokens={},
        reasoning_tags=ReasoningTags("<think>", "</think>"),
        starts_in_reasoning=inside,
        thought_end=tuple(b"</think>"),
    )
    begin = "" if inside else "<think>"
    answer = Constraint(kind=ConstraintKind.JSON_OBJECT)
    now = [Tool(name="now", parameters={})]
    for asked, rest in (
        (with_reasoning(answer, layout), "{}"),
        (with_tools(HERMES, now, layout, is_required=True, may_repeat=False), "<tool_call>"),
        (with_tools(HERMES, now, layout, is_required=False, may_repeat=False, answer=answer), "{}"),
    ):
        state = grammars.compile(asked, is_internal=True).start()
        text = (begin + "I think, so " * 30).encode()
        while state.allows(text[0]):
            state.accept(text[0])
            text = text[1:]
        assert len(text) > 100
        for byte in f"</think>\n{rest}".encode():
            assert state.allows(byte)
            state.accept(byte)


def test_free_text_is_not_closed_like_a_thought(grammars: GrammarCompiler) -> None:
    layout = Layout(tokens={}, reasoning_tags=ReasoningTags("<think>", "</think>"), thought_end=tuple(b"</think>"))
    auto = with_tools(HERMES, [Tool(name="now", parameters={})], layout, is_required=False, may_repeat=False)
    assert accepts(grammars.compile(auto, is_internal=True), "so, " * 300)


def test_free_text_and_a_regex_may_repeat_themselves(grammars: GrammarCompiler) -> None:
    thought = constraint("grammar", 'start: TEXT "</t>" json\nTEXT: /[^<]*/\njson: %json {"type": "array"}')
    grammar = grammars.compile(thought)
    assert accepts(grammar, "so, " * 300 + "1" * 300 + "</t>[1]")
    assert not accepts(grammar, "so</t>[" + "1" * 300 + "]")
    assert accepts(grammars.compile(constraint("regex", "(ha)*")), "ha" * 500)
