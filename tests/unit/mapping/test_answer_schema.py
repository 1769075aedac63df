"""Schemas of answers, and their shorthand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher

from engine.structured.schema import grammar_text
from engine.types import Constraint, ConstraintKind
from mapping.answer_schema import AnswerSchema
from mapping.errors import MappingError

ISSUE = "category: billing|shipping|technical|account, priority: low|medium|high, amount: number?"


def types(schema: str | dict) -> dict[str, str]:
    return {column.name: str(column.type) for column in AnswerSchema(schema).columns}


def test_the_shorthand_makes_a_strict_schema():
    schema = AnswerSchema(ISSUE)
    assert schema.response_format() == {
        "type": "json_schema",
        "json_schema": {
            "name": "row",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "category": {"type": "string", "enum": ["billing", "shipping", "technical", "account"]},
                    "priority": {"type": "string", "enum": ["low", "medium", "high"]},
                    "amount": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                },
                "required": ["category", "priority", "amount"],
                "additionalProperties": False,
            },
        },
    }
    assert types(ISSUE)["amount"] == "number"


@pytest.mark.parametrize(
    ("shorthand", "expected"),
    [
        ("a: string", {"a": "string"}),
        ("a:text,b:int , c : float?, d: bool,", {"a": "string", "b": "integer", "c": "number", "d": "boolean"}),
        (
            "tags: string[], n: integer[]?, labels: (low|high)[]",
            {"tags": "string[]", "n": "integer[]", "labels": "low|high[]"},
        ),
        ("due: date\nok: yes|no\n", {"due": "date", "ok": "yes|no"}),
        ("rating: 1|2|3", {"rating": "integer"}),
        ("amount: number|null", {"amount": "number"}),
        ("mood: very good|not so good", {"mood": "very good|not so good"}),
        ("mood: 'a, b'|\"c|d\"|'number'", {"mood": "a, b|c|d|number"}),
        ("Ticket type: a|b", {"Ticket type": "a|b"}),
        ("sign: +|-", {"sign": "+|-"}),
    ],
)
def test_types_of_the_shorthand(shorthand, expected):
    assert types(shorthand) == expected


@pytest.mark.parametrize(
    ("shorthand", "message"),
    [
        ("category", "at character 1: 'category' is not of the form `name: type`"),
        ("a: string, b", "at character 12: 'b' is not of the form"),
        ("a: strnig", "at character 4: 'a' has the type 'strnig'; did you mean 'string'?"),
        ("a: billing", "types are string, number, integer, boolean, date, or choices such as low|high"),
        ("a: low||high", "'a' has an empty choice"),
        ("a: low|", "'a' has an empty choice"),
        ("a: |low", "'a' has an empty choice"),
        ("a: low|low", "'a' has a choice twice"),
        ("a: string|number", "put quotes around a choice that is named 'string'"),
        ("a: string, a: number", "at character 12: 'a' appears twice"),
        (": string", "is not of the form"),
        ("", "must be an object with `properties`"),
        ('{"type": "object"', "is no JSON"),
        ('{"type": "array"}', "must be an object with `properties`"),
    ],
)
def test_errors_name_part_and_position(shorthand, message):
    with pytest.raises(MappingError) as raised:
        AnswerSchema(shorthand)
    assert message in str(raised.value)
    assert raised.value.param == "schema"


def test_json_schemas_become_strict():
    schema: dict[str, Any] = {
        "$defs": {
            "Level": {"enum": ["low", "high"]},
            "Part": {"type": "object", "properties": {"n": {"type": "integer"}}},
        },
        "type": "object",
        "properties": {
            "enum": {"$ref": "#/$defs/Level"},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
            "maybe": {"type": ["number", "null"]},
            "properties": {"type": "object", "properties": {"x": {"type": "string", "default": "y"}}},
            "mix": {"anyOf": [{"type": "string"}, {"type": "number"}]},
            "free": {"type": "object", "additionalProperties": {"type": "string"}},
            "fixed": {"const": "v1"},
        },
    }
    made = AnswerSchema(json.dumps(schema))
    assert made.schema["required"] == list(schema["properties"])
    assert made.schema["$defs"]["Part"] == {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    assert made.schema["properties"]["properties"]["required"] == ["x"]
    assert made.schema["properties"]["free"] == schema["properties"]["free"]
    assert types(schema) == {
        "enum": "low|high",
        "parts": "object[]",
        "maybe": "number",
        "properties": "object",
        "mix": "json",
        "free": "json",
        "fixed": "v1",
    }


@pytest.mark.parametrize(
    "wrap", [lambda s: {"name": "x", "schema": s}, lambda s: {"type": "json_schema", "json_schema": {"schema": s}}]
)
def test_a_schema_in_its_response_format_is_found(wrap):
    assert types(wrap({"type": "object", "properties": {"a": {"type": "string"}}})) == {"a": "string"}


def test_a_recursive_schema_ends():
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    assert types({"$defs": {"node": node}, "type": "object", "properties": {"first": {"$ref": "#/$defs/node"}}}) == {
        "first": "object"
    }


def test_the_engine_accepts_every_type_of_the_shorthand():
    shorthand = f"{ISSUE}, a: string[], b: integer?, c: boolean, due: date, rating: 1|2|3, d: (x|y)[]?"
    text = json.dumps(AnswerSchema(shorthand).schema)
    grammar = grammar_text(Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text))
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    assert not is_error, messages
