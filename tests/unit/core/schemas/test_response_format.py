"""Structured output: accepted formats, and the errors of all others."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import ApiError
from core.models.model_files import ModelConfig
from core.schemas import response_format as wire
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from engine.structured import schema as engine_limits
from engine.types import Constraint, ConstraintKind, Priority
from workers.generation.engine_request import to_engine_request

SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"enum": ["ü"]}}, "required": ["z"]}


def chat_with(**more: Any) -> ChatRequest:
    return parse_body(ChatRequest, {"model": "m", "messages": [{"role": "user", "content": "hello"}], **more})


def constraint_of(**more: Any) -> Constraint | None:
    model = ModelConfig(name="m", backend="fake")
    return to_engine_request("j", chat_with(**more), model, tenant="t", priority=Priority.CHAT).constraint


def by_schema(**more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "label", "schema": SCHEMA, **more}}}


GOOD = {
    "nothing": ({}, None),
    "null": ({"response_format": None, "structured_outputs": None}, None),
    "text": ({"response_format": {"type": "text"}}, None),
    "any object": ({"response_format": {"type": "json_object"}}, Constraint(kind=ConstraintKind.JSON_OBJECT)),
    "a schema, its keys in order": (
        by_schema(strict=True, description="x"),
        Constraint(
            kind=ConstraintKind.JSON_SCHEMA,
            text='{"type":"object","properties":{"z":{"type":"integer"},"a":{"enum":["ü"]}},"required":["z"]}',
        ),
    ),
    "a schema's text": (
        {"structured_outputs": {"json": '{"type":"integer"}'}},
        Constraint(kind=ConstraintKind.JSON_SCHEMA, text='{"type":"integer"}', param="structured_outputs"),
    ),
    "a schema as vLLM takes it": (
        {"structured_outputs": {"json": {"type": "integer"}}},
        Constraint(kind=ConstraintKind.JSON_SCHEMA, text='{"type":"integer"}', param="structured_outputs"),
    ),
    "any object as vLLM takes it": (
        {"structured_outputs": {"json_object": True}},
        Constraint(kind=ConstraintKind.JSON_OBJECT, param="structured_outputs"),
    ),
    "a regex": ({"structured_outputs": {"regex": "a+"}}, Constraint(kind=ConstraintKind.REGEX, text="a+")),
    "a choice": (
        {"structured_outputs": {"choice": ["yes", "no"]}, "response_format": {"type": "text"}},
        Constraint(kind=ConstraintKind.CHOICE, text='["yes","no"]'),
    ),
    "a grammar": (
        {"structured_outputs": {"grammar": 'start: "a"'}},
        Constraint(kind=ConstraintKind.GRAMMAR, text='start: "a"'),
    ),
}


@pytest.mark.parametrize(("asked", "constraint"), GOOD.values(), ids=GOOD.keys())
def test_a_format_reaches_the_engine(asked: dict[str, Any], constraint: Constraint | None) -> None:
    assert constraint_of(**asked) == constraint


def outputs(**given: Any) -> dict[str, Any]:
    return {"structured_outputs": given}


BAD = {
    "no type": ({"response_format": {}}, "missing_required_parameter", "response_format.type"),
    "an unknown type": ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
    "a format as text": ({"response_format": "json"}, "invalid_type", "response_format"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format"),
    "a schema without its type": (
        {"response_format": {"type": "json_object", "json_schema": {"name": "x", "schema": {}}}},
        "invalid_value",
        "response_format",
    ),
    "a schema in the wrong place": (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        "unsupported_parameter",
        "response_format",
    ),
    "no name": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "missing_required_parameter",
        "response_format.json_schema.name",
    ),
    "a name with a space": (by_schema(name="a b"), "invalid_value", "response_format.json_schema.name"),
    "a schema that is none": (by_schema(schema=5), "invalid_type", "response_format.json_schema.schema"),
    "a schema of 100 kB": (
        by_schema(schema={"description": "x" * 100_000}),
        "invalid_value",
        "response_format.json_schema.schema",
    ),
    "no kind of output": (outputs(), "invalid_value", "structured_outputs"),
    "only an unknown kind": (outputs(structural_tag="{}"), "invalid_value", "structured_outputs"),
    "two kinds": (outputs(regex="a", choice=["b"]), "invalid_value", "structured_outputs"),
    "json_object that is off": (outputs(json_object=False), "invalid_value", "structured_outputs"),
    "a long regex": (outputs(regex="a" * 5000), "invalid_value", "structured_outputs.regex"),
    "an empty regex": (outputs(regex=""), "invalid_value", "structured_outputs.regex"),
    "a long grammar": (outputs(grammar="(" * 40_000), "invalid_value", "structured_outputs.grammar"),
    "no choice": (outputs(choice=[]), "invalid_value", "structured_outputs.choice"),
    "501 choices": (outputs(choice=["a"] * 501), "invalid_value", "structured_outputs.choice"),
    "long choices": (outputs(choice=["a" * 20_000]), "invalid_value", "structured_outputs.choice"),
    "an empty choice": (outputs(choice=["a", ""]), "invalid_value", "structured_outputs.choice[1]"),
    "a choice of numbers": (outputs(choice=[1]), "invalid_type", "structured_outputs.choice[0]"),
    "a long schema's text": (outputs(json="x" * 70_000), "invalid_value", "structured_outputs.json"),
    "both at once": ({**by_schema(), **outputs(regex="a")}, "invalid_value", "structured_outputs"),
    "a raw grammar": ({"grammar": "root ::= x"}, "unsupported_parameter", "grammar"),
    "a guided field of old": ({"guided_json": {}}, "unsupported_parameter", "guided_json"),
}


@pytest.mark.parametrize(("asked", "code", "param"), BAD.values(), ids=BAD.keys())
def test_an_invalid_format_is_a_400_that_names_the_field(asked: dict[str, Any], code: str, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        chat_with(**asked)
    problem = caught.value.problem
    assert (problem.status, problem.code, problem.param) == (400, code, param)


def test_the_edge_and_the_engine_allow_the_same_sizes() -> None:
    names = [name for name in vars(wire) if name.startswith("MAX_")]
    assert len(names) == 5
    assert {name: getattr(wire, name) for name in names} == {name: getattr(engine_limits, name) for name in names}
