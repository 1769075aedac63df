"""Constraints that are rejected before or during compilation, and the error messages for their authors."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from engine.errors import InvalidConstraint
from engine.structured.compile_sandbox import CompileSandbox
from engine.structured.compiler import GrammarCompiler
from tests.support.constrain import LABELS, accepts, constraint, make_grammars


@pytest.fixture(scope="module")
def sandbox() -> Iterator[CompileSandbox]:
    sandbox = CompileSandbox()
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def grammars(sandbox: CompileSandbox) -> GrammarCompiler:
    return make_grammars(sandbox=sandbox, jump_forward=False)


def nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


def schema(**keywords: Any) -> str:
    return json.dumps(keywords)


A_RULE_EACH = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(2300)) + 'r2300: "a"'
A_FLOOD = "start: c\nc: b{1000}\nb: a{1000}\na: D{1000}\nD: /a{20000}/"
CONTRADICTION = schema(allOf=[{"type": "string"}, {"type": "integer"}])

NASTY = {
    "depth 1000": ("json_schema", nested(1000), "nested"),
    "depth 17": ("json_schema", nested(17), "nested more than 16 deep"),
    "no JSON": ("json_schema", '{"type":', "not JSON"),
    "no object": ("json_schema", "[]", "must be a JSON object"),
    "a loop of references": (
        "json_schema",
        '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}',
        "Nothing can match",
    ),
    "a schema that is itself": ("json_schema", '{"$ref":"#"}', "Nothing can match"),
    "an object without an end": (
        "json_schema",
        '{"properties":{"a":{"$ref":"#"}},"required":["a"],"type":"object"}',
        "complex",
    ),
    "a remote reference": ("json_schema", schema(properties={"a": {"$ref": "http://127.0.0.1/x"}}), "#/properties/a"),
    "a file's reference": ("json_schema", '{"$ref":"file:///etc/passwd"}', "must point into the schema itself"),
    "a reference to nothing": ("json_schema", '{"$ref":"#/$defs/no"}', "does not exist"),
    "10,000 values": ("json_schema", schema(enum=list(range(10_000))), "has 10000 values"),
    "600 properties": ("json_schema", schema(properties={f"p{i}": {} for i in range(600)}), "more than 500 schemas"),
    "100 kB": ("json_schema", schema(description="x" * 100_000), "at most 65536"),
    "a million items": ("json_schema", schema(type="array", minItems=1_000_000), "'minItems' at '#'"),
    "a long text": ("json_schema", schema(type="string", maxLength=10**12), "'maxLength' at '#'"),
    "a forced million": ("json_schema", schema(type="string", pattern="^(a{1000}){1000}$"), "complex"),
    "a long pattern": ("json_schema", schema(patternProperties={"x" * 5000: {}}), "at most 4096"),
    "a bad pattern": ("json_schema", schema(type="string", pattern="(a"), "unclosed group"),
    "a look-around": ("json_schema", schema(type="string", pattern="(?=a)b"), "look-around"),
    "a contradiction": ("json_schema", CONTRADICTION, "Nothing can match the schema"),
    "bounds that cross": ("json_schema", schema(type="integer", minimum=5, maximum=3), "greater than maximum"),
    "an unsupported keyword": ("json_schema", schema(properties={"a": {"not": {}}}), "'not' at '#/properties/a'"),
    "unique items": ("json_schema", schema(items={"uniqueItems": True}), "'uniqueItems' at '#/items'"),
    "oneOf that overlaps": ("json_schema", schema(oneOf=[{"type": "integer"}, {"minimum": 2}]), "use 'anyOf'"),
    "an unknown format": ("json_schema", schema(type="string", format="iri"), "Unknown format: iri"),
    "the server's options": ("json_schema", '{"x-guidance":{"lenient":true},"not":{}}', "x-guidance"),
    "20,000 parentheses": ("grammar", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000, "at most 32768"),
    "16,000 parentheses": ("grammar", "start: " + "(" * 16_000 + '"a"' + ")" * 16_000, "too deeply nested"),
    "a stack overflow": ("grammar", A_RULE_EACH, "too complex"),
    "a flood of memory": ("grammar", A_FLOOD, "too complex"),
    "an empty grammar": ("grammar", " \n", "rule 'start'"),
    "a grammar past the limits": ("grammar", '{"grammars":[{"json_schema":{}}]}', "Lark"),
    "a grammar of nothing": ("grammar", "start: /[^\\s\\S]/", "Nothing can match"),
    "a syntax error": ("grammar", 'start: ("a"', "Expected token"),
    "a control token": ("grammar", 'start: "a" <|im_end|>', "unknown special token"),
    "a bad regex": ("regex", "(a", "The regex is not valid: unclosed group"),
    "a long regex": ("regex", "a" * 5000, "at most 4096"),
    "a regex of four billion": ("regex", "a{4000000000}", "complex"),
    "no choice": ("choice", "[]", "1 to 500"),
    "501 choices": ("choice", json.dumps(["a"] * 501), "1 to 500"),
    "an empty choice": ("choice", '["a",""]', "empty"),
    "choices of 20 kB": ("choice", json.dumps(["x" * 20_000]), "at most 16384"),
    "choices that are no list": ("choice", '{"a":1}', "list of strings"),
}


@pytest.mark.parametrize(("kind", "text", "message"), NASTY.values(), ids=NASTY.keys())
def test_a_harmful_constraint_is_rejected_and_the_next_one_compiles(
    grammars: GrammarCompiler, kind: str, text: str, message: str
) -> None:
    with pytest.raises(InvalidConstraint, match=message.replace("(", r"\(").replace("$", r"\$")) as caught:
        grammars.compile(constraint(kind, text))
    assert len(str(caught.value)) < 300
    fresh = {**LABELS, "title": f"after {kind} {message}"}
    assert accepts(grammars.compile(constraint("json_schema", fresh)), '{"topic": "billing", "urgent": true}')


@pytest.mark.parametrize("text", [A_RULE_EACH, A_FLOOD], ids=["crash", "flood"])
def test_a_crashed_helper_is_replaced(sandbox: CompileSandbox, text: str) -> None:
    sandbox.start()
    before = sandbox.pid
    with pytest.raises(InvalidConstraint, match="too complex"):
        sandbox.check(text)
    assert sandbox.pid != before
    sandbox.check('start: "fine"')


def test_a_helper_that_hangs_is_replaced(sandbox: CompileSandbox) -> None:
    sandbox.check('start: "fine"')
    before = sandbox.pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)
    os.waitid(os.P_PID, before, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(InvalidConstraint, match="too complex"):
        sandbox.check('start: "also fine"')
    assert sandbox.pid != before
    sandbox.check('start: "fine"')


def test_a_helper_that_was_killed_while_it_was_idle_costs_no_constraint(sandbox: CompileSandbox) -> None:
    sandbox.check('start: "fine"')
    assert sandbox.pid is not None
    with ended(sandbox.pid):
        os.kill(sandbox.pid, signal.SIGKILL)
    sandbox.check('start: "fine"')


OWNER = """
from engine.structured.compile_sandbox import CompileSandbox
sandbox = CompileSandbox()
sandbox.check('start: "fine"')
print(sandbox.pid, flush=True)
input()
"""


def test_the_helper_ends_when_the_engine_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        with ended(int(owner.stdout.readline())):
            owner.kill()


class ended:  # noqa: N801 - reads as a statement
    """Wait at the end of the block until a process, a child or not, has ended."""

    def __init__(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        try:
            assert select.select([self._pidfd], [], [], 20)[0], "the process lives on"
        finally:
            os.close(self._pidfd)


def test_names_in_data_are_not_taken_for_keywords(grammars: GrammarCompiler) -> None:
    """Here `$ref`, `enum` and `not` are properties or values."""
    text = schema(
        type="object",
        properties={"$ref": {"type": "integer"}, "not": {"enum": [{"not": 1}, {"$ref": "http://x"}]}},
        required=["$ref", "not"],
        additionalProperties=False,
    )
    assert accepts(grammars.compile(constraint("json_schema", text)), '{"$ref": 1, "not": {"$ref": "http://x"}}')
