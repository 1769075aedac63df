"""Grammars and their states, token by token."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from engine.backends.fake.tokenizer import FakeTokenizer, fake_grammar_tokenizer
from engine.errors import ConstraintFailed, InvalidConstraint
from engine.structured.compile_sandbox import CompileSandbox
from engine.structured.compiler import GrammarCompiler
from tests.support.constrain import END, LABELS, accepts, allowed_tokens, constraint, make_grammars


@pytest.fixture(scope="module")
def grammars() -> Iterator[GrammarCompiler]:
    """Without forced tokens, so that every byte is checked."""
    grammars = make_grammars(jump_forward=False)
    yield grammars
    grammars.close()


@pytest.fixture(scope="module")
def jumping() -> Iterator[GrammarCompiler]:
    grammars = make_grammars()
    yield grammars
    grammars.close()


GOOD_AND_BAD = {
    "a schema": (constraint("json_schema", LABELS), '{"topic": "billing", "urgent": true}', '{"topic": "other"'),
    "a schema without free space": (
        constraint("json_schema", LABELS),
        '{"topic": "shipping", "urgent": false}',
        '{ "topic"',
    ),
    "any object": (constraint("json_object"), '{"a": [1, {"b": "Grüße 😀"}], "c": null}', "[1]"),
    "no more than an object": (constraint("json_object"), "{}", "{}{"),
    "a regex": (constraint("regex", r"[a-c]+/\d{2}"), "abc/12", "abc/1x"),
    "a choice": (constraint("choice", ["yes", 'a "quoted"\n\\ line', "Grüße 😀"]), 'a "quoted"\n\\ line', "yess"),
    "a choice that begins another": (constraint("choice", ["no", "nothing"]), "no", "not "),
    "a grammar": (constraint("grammar", 'start: "<" WORD ">"\nWORD: /[a-z]+/'), "<mill>", "<>"),
    "a pattern": (constraint("json_schema", {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"}), '"DE17"', '"D1'),
    "a recursive schema": (
        constraint(
            "json_schema", {"properties": {"next": {"$ref": "#"}}, "additionalProperties": False, "type": "object"}
        ),
        '{"next": {"next": {}}}',
        '{"next": 1',
    ),
}


@pytest.mark.parametrize(("asked", "good", "bad"), GOOD_AND_BAD.values(), ids=GOOD_AND_BAD.keys())
def test_only_text_that_follows_the_constraint_is_accepted(
    grammars: GrammarCompiler, asked, good: str, bad: str
) -> None:
    grammar = grammars.compile(asked)
    assert accepts(grammar, good)
    assert not accepts(grammar, bad)


def test_the_mask_and_the_cheap_check_agree(grammars: GrammarCompiler) -> None:
    state = grammars.compile(constraint("json_schema", LABELS)).start()
    for byte in b'{"topic": "billing", "urgent": true}':
        assert allowed_tokens(state) == [token for token in range(END + 1) if state.allows(token)]
        assert byte in allowed_tokens(state)
        state.accept(byte)
    assert state.is_finished
    assert allowed_tokens(state) == [END]
    assert state.allows(END)
    assert not state.allows(ord("}"))


def test_the_end_is_allowed_only_where_the_answer_is_complete(grammars: GrammarCompiler) -> None:
    state = grammars.compile(constraint("regex", "ab?")).start()
    assert not state.allows(END)
    state.accept(ord("a"))
    assert allowed_tokens(state) == [ord("b"), END]
    assert not state.is_finished
    assert state.accept(END) == []
    assert state.is_finished


def test_a_choice_between_texts_forces_the_rest_of_them(jumping: GrammarCompiler) -> None:
    state = jumping.compile(constraint("json_schema", LABELS)).start()
    assert bytes(state.jump()) == b'{"topic": "'
    assert bytes(state.accept(ord("s"))) == b'hipping", "urgent": '
    assert bytes(state.accept(ord("t"))) == b"rue}"
    assert state.is_finished
    assert state.jump() == []


def test_nothing_is_forced_where_jumping_is_off(grammars: GrammarCompiler) -> None:
    state = grammars.compile(constraint("json_schema", LABELS)).start()
    assert state.jump() == []
    assert state.accept(ord("{")) == []


def test_answers_of_one_grammar_are_independent(jumping: GrammarCompiler) -> None:
    grammar = jumping.compile(constraint("choice", ["apple", "avocado"]))
    first, second = grammar.start(), grammar.start()
    first.jump()
    assert bytes(first.accept(ord("v"))) == b"ocado"
    assert bytes(second.jump()) == b"a"
    assert bytes(second.accept(ord("p"))) == b"ple"


def test_a_token_that_is_not_allowed_is_an_error_and_not_free_text(grammars: GrammarCompiler) -> None:
    state = grammars.compile(constraint("json_object")).start()
    with pytest.raises(ConstraintFailed):
        state.accept(ord("x"))
    assert state.error
    with pytest.raises(ConstraintFailed):
        allowed_tokens(state)


def test_a_dead_end_in_the_middle_is_an_error_and_not_free_text(grammars: GrammarCompiler) -> None:
    state = grammars.compile(constraint("grammar", 'start: "a" /[a-z]?/ /[^\\s\\S]/')).start()
    with pytest.raises(ConstraintFailed) as caught:
        for _ in range(3):
            state.accept(allowed_tokens(state)[0])
    assert caught.value.code == "constraint_error"


def test_a_grammar_is_not_exhausted_by_its_answers(grammars: GrammarCompiler) -> None:
    """The lexer needs a state for each possible sequence of the last thirty letters, more than the limit allows."""
    grammar = grammars.compile(constraint("regex", "[ab]*a[ab]{30}c"))
    draw = random.Random(1)
    for _ in range(400):
        state = grammar.start()
        for letter in draw.choices(b"ab", k=150):
            state.accept(letter)
        assert state.error is None


def test_the_same_constraint_is_compiled_once(grammars: GrammarCompiler) -> None:
    asked = constraint("json_schema", {"type": "integer"})
    assert grammars.compile(asked) is grammars.compile(asked)


def test_the_same_text_of_another_kind_is_another_constraint(grammars: GrammarCompiler) -> None:
    assert accepts(grammars.compile(constraint("regex", '["a"]')), "a")
    assert not accepts(grammars.compile(constraint("choice", '["a"]')), '"')
    assert accepts(grammars.compile(constraint("choice", '["a"]')), "a")


def test_only_the_latest_grammars_are_cached() -> None:
    grammars = make_grammars(max_cached=2)
    first = grammars.compile(constraint("choice", ["a"]))
    second = grammars.compile(constraint("choice", ["b"]))
    assert grammars.compile(constraint("choice", ["a"])) is first
    grammars.compile(constraint("choice", ["c"]))
    assert grammars.compile(constraint("choice", ["a"])) is first
    assert grammars.compile(constraint("choice", ["b"])) is not second
    grammars.close()


def test_an_error_is_cached_too_and_names_the_parameter(grammars: GrammarCompiler) -> None:
    for kind, text, param in (("json_schema", {"not": {}}, "response_format"), ("regex", "(", "structured_outputs")):
        messages = set()
        for _ in range(2):
            with pytest.raises(InvalidConstraint) as caught:
                grammars.compile(constraint(kind, text))
            assert (caught.value.code, caught.value.param) == ("invalid_schema", param)
            messages.add(str(caught.value))
        assert len(messages) == 1
    for_another_field = msgspec.structs.replace(constraint("json_schema", {"not": {}}), param="structured_outputs")
    with pytest.raises(InvalidConstraint) as caught:
        grammars.compile(for_another_field)
    assert caught.value.param == "structured_outputs"


def test_many_threads_may_compile_at_once(grammars: GrammarCompiler) -> None:
    def work(number: int) -> None:
        compiled.append(
            accepts(grammars.compile(constraint("choice", [f"answer {number % 5}"])), f"answer {number % 5}")
        )

    compiled: list[bool] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == [True] * 20


def test_the_vocabulary_is_built_once_and_not_before_it_is_needed() -> None:
    built: list[int] = []

    def build():
        built.append(1)
        return fake_grammar_tokenizer(FakeTokenizer())

    sandbox = CompileSandbox()
    grammars = GrammarCompiler(build, num_vocab=FakeTokenizer.num_vocab, sandbox=sandbox)
    assert not built
    grammars.prepare()
    grammars.prepare()
    assert sandbox.pid is None, "its process starts with the first constraint"
    grammars.compile(constraint("json_object"))
    assert sandbox.pid is not None
    assert built == [1]
    grammars.close()


def test_a_vocabulary_of_another_width_than_the_logits_constrains_nothing() -> None:
    grammars = GrammarCompiler(lambda: fake_grammar_tokenizer(FakeTokenizer()), num_vocab=FakeTokenizer.num_vocab + 6)
    with pytest.raises(ConstraintFailed, match="258 tokens"):
        grammars.compile(constraint("json_object"))
    grammars.close()


def test_a_vocabulary_that_cannot_be_built_fails_the_request_only() -> None:
    def build():
        raise RuntimeError("no vocabulary")

    grammars = GrammarCompiler(build, num_vocab=FakeTokenizer.num_vocab)
    for _ in range(2):
        with pytest.raises(ConstraintFailed, match="no vocabulary"):
            grammars.compile(constraint("json_object"))
    grammars.close()


def test_random_answers_to_a_schema_always_parse(jumping: GrammarCompiler) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", 'b"c', "ü"]}, "maxItems": 3},
            "mail": {"anyOf": [{"type": "string", "format": "email"}, {"type": "null"}]},
        },
        "required": ["name", "age", "tags", "mail"],
        "additionalProperties": False,
    }
    grammar = jumping.compile(constraint("json_schema", schema))
    draw = np.random.default_rng(3)
    for _ in range(50):
        state = grammar.start()
        answer = state.jump()
        while not state.is_finished and len(answer) < 1000:
            answer.append(int(draw.choice([token for token in allowed_tokens(state) if token != END])))
            answer += state.accept(answer[-1])
        if state.is_finished:
            parsed = json.loads(bytes(answer))
            assert list(parsed) == ["name", "age", "tags", "mail"]
            assert 0 <= parsed["age"] <= 150


def test_keys_that_a_schema_does_not_name_are_not_written(grammars: GrammarCompiler) -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}}
    grammar = grammars.compile(
        constraint("json_schema", {**inner, "properties": {"a": {"type": "integer"}, "b": inner}})
    )
    assert accepts(grammar, '{"a": 1, "b": {"a": 2}}')
    assert not accepts(grammar, '{"a": 1, "c": 2}')
    assert not accepts(grammar, '{"b": {"c": 2}}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "integer"}},
        {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}, {"properties": {"c": {}}}]},
        {"type": "object"},
    ],
)
def test_other_keys_are_written_if_the_schema_allows_them(schema: dict[str, object], grammars: GrammarCompiler) -> None:
    grammar = grammars.compile(constraint("json_schema", schema))
    assert accepts(grammar, '{"a": 1, "c": 2}')
