"""B36 to B38: expensive schemas, regexes and grammars, through the whole stack and its real compiler.

The messages for some forty texts are in `tests/unit/engine/structured/test_grammar_limits.py`.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.hostile_input.corpus import deep_objects
from tests.hostile_input.target import CHAT, JSON, MARK, Target, chat


def schema(**keywords: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": keywords}}}


def outputs(**constraint: Any) -> dict[str, Any]:
    return {"structured_outputs": constraint}


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"type": "array", "items": inner}
    return inner


LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
A_RULE_EACH = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(2000)) + 'r2000: "a"'
CODES = ("invalid_schema", "invalid_value", "invalid_type", "missing_required_parameter", "unsupported_parameter")
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "B36-depth-90": (schema(**nested(90)), "response_format"),
    "B36-depth-17": (schema(**nested(17)), "response_format"),
    "B36-ref-loop": (schema(**LOOP), "response_format"),
    "B36-ref-itself": (schema(**{"$ref": "#"}), "response_format"),
    "B36-remote-ref": (schema(**{"$ref": "http://127.0.0.1:1/x.json"}), "response_format"),
    "B36-file-ref": (schema(**{"$ref": "file:///etc/passwd"}), "response_format"),
    "B36-10000-enum": (schema(enum=list(range(10_000))), "response_format"),
    "B36-100-kB": (schema(description=MARK * 8000), "response_format"),
    "B36-repeats": (schema(type="array", minItems=10**9), "response_format"),
    "B36-pattern": (schema(type="string", pattern="(a+)+" * 1000 + "$"), "response_format"),
    "B36-pattern-bomb": (schema(type="string", pattern="^((a{100}){100}){100}$"), "response_format"),
    "B36-bad-pattern": (schema(type="string", pattern="(" + MARK), "response_format"),
    "B36-unknown-keyword": (schema(**{"not": {}}), "response_format"),
    "B36-no-schema": ({"response_format": {"type": "json_schema"}}, "response_format"),
    "B36-no-name": ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format"),
    "B36-a-list": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": [MARK]}}},
        "response_format",
    ),
    "B36-unknown-type": ({"response_format": {"type": MARK}}, "response_format"),
    "B36-json-text": (outputs(json='{"$ref": "#"}'), "structured_outputs"),
    "B36-json-broken-text": (outputs(json="{" + MARK), "structured_outputs"),
    "B36-json-deep-text": (outputs(json=deep_objects(5000).decode()), "structured_outputs"),
    "B36-json-huge-number-text": (outputs(json='{"maximum": 1' + "0" * 5000 + "}"), "structured_outputs"),
    "B36-regex": (outputs(regex="(" + MARK), "structured_outputs"),
    "B36-regex-bomb": (outputs(regex="((a{1000}){1000}){1000}"), "structured_outputs"),
    "B36-regex-long": (outputs(regex=MARK * 1000), "structured_outputs"),
    "B36-choices": (outputs(choice=["a"] * 501), "structured_outputs"),
    "B36-no-choice": (outputs(choice=[]), "structured_outputs"),
    "B36-two": (outputs(choice=["a"], regex="a"), "structured_outputs"),
    "B36-none": (outputs(), "structured_outputs"),
    "B37-contradiction": (schema(allOf=[{"type": "string"}, {"type": "integer"}]), "response_format"),
    "B37-bounds": (schema(type="integer", minimum=5, maximum=3), "response_format"),
    "B37-false": (schema(type="object", properties={"a": False}, required=["a"]), "response_format"),
    "B37-empty-enum": (schema(enum=[]), "response_format"),
    "B38-20000-parentheses": (outputs(grammar="start: " + "(" * 20_000 + '"a"' + ")" * 20_000), "structured_outputs"),
    "B38-16000-parentheses": (outputs(grammar="start: " + "(" * 16_000 + '"a"' + ")" * 16_000), "structured_outputs"),
    "B38-a-stack-of-rules": (outputs(grammar=A_RULE_EACH), "structured_outputs"),
    "B38-gbnf": (outputs(grammar='root ::= "a"'), "structured_outputs"),
    "B38-raw-field": ({"grammar": "(" * 20_000 + ")" * 20_000}, "grammar"),
}


@pytest.mark.parametrize("model", ["fake", "demo"])
@pytest.mark.parametrize(("fields", "param"), WRONG.values(), ids=WRONG.keys())
def test_a_harmful_constraint_is_a_400_within_seconds(
    target: Target, model: str, fields: dict[str, Any], param: str
) -> None:
    began = time.perf_counter()
    answer = target.http.post(CHAT, json=chat(model=model, user=MARK, **fields))
    seconds = time.perf_counter() - began
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["code"] in CODES
    assert error["param"].startswith(param)
    assert len(answer.content) < 1000
    assert seconds < 5, "the helper has a second of processor time; this machine may be busy"


def test_a_schema_of_50_mb_is_refused_unread(target: Target) -> None:
    """B36: it is larger than the limit of any body."""
    body = json.dumps(chat(**schema(description="x" * (50 << 20)))).encode()
    target.refused(target.http.post(CHAT, content=body, headers=JSON), 413, "request_too_large")


@pytest.mark.parametrize("model", ["fake", "demo"])
def test_a_line_with_an_unsatisfiable_schema_fails_alone(target: Target, model: str) -> None:
    """B36 to B38 in a batch: their lines fail, and the others are answered."""
    bodies = [
        {"custom_id": name, "method": "POST", "url": CHAT, "body": chat(model=model, **fields)}
        for name, (fields, _) in WRONG.items()
    ]
    good = {"custom_id": "good", "method": "POST", "url": CHAT, "body": chat(model=model)}
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in [good, *bodies, {**good, "custom_id": "last"}])
    batch = target.batch_of(lines, seconds=90)
    assert batch.status == "completed"
    assert [line["custom_id"] for line in target.results(batch.output_file_id)] == ["good", "last"]
    errors = target.results(batch.error_file_id)
    assert [line["custom_id"] for line in errors] == list(WRONG)
    assert {line["response"]["status_code"] for line in errors} == {400}
