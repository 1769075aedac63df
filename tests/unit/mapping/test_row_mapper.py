"""Mappings: requests, answers, examples, and errors that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from mapping.answers import Answer, Answers, read_answer
from mapping.errors import MappingError, RowError
from mapping.formats.opening import open_table
from mapping.row_mapper import RowMapper
from mapping.spec import parse_spec
from tests.unit.mapping.conftest import Run, chat_line, failed_line

SCHEMA = "category: billing|other, amount: number?"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("id,text,amount_paid\n1,Pay,5\n2,Ship,\n3,Pay,7\n4,,1\n5,Pay,5\n")
    return path


def mapper(source, **spec: Any) -> RowMapper:
    return RowMapper(
        parse_spec({"model": "demo", **({} if "embed" in spec else {"prompt": "{text}"}), **spec}), open_table(source)
    )


def bodies(run: Run) -> list[dict[str, Any]]:
    return [request["body"] for request in run.requests]


def test_equal_rows_are_asked_once_and_empty_ones_not_at_all(source, tmp_path):
    run = Run(source, tmp_path / "out.csv", system="Amounts are {amount_paid}.")
    assert [(b["messages"][0]["content"], b["messages"][1]["content"]) for b in bodies(run)] == [
        ("Amounts are 5.", "Pay"),
        ("Amounts are .", "Ship"),
        ("Amounts are 7.", "Pay"),
        ("Amounts are 1.", ""),
    ]
    run = Run(source, tmp_path / "out.csv")
    assert run.prompts == ["Pay", "Ship"]
    assert (run.planned.rows, run.planned.asked, run.planned.left_out, run.planned.requests) == (5, 4, 1, 2)
    assert (tmp_path / "out.csv").read_text().splitlines()[3:] == ["3,Pay,7,PAY,", "4,,1,,", "5,Pay,5,PAY,"]


def test_requests_are_what_the_endpoint_accepts(source, tmp_path):
    run = Run(
        source,
        tmp_path / "o.csv",
        lambda _: {"category": "other", "amount": None},
        schema=SCHEMA,
        parameters={"temperature": 0, "seed": 7},
    )
    request = run.requests[0]
    assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
    body = parse_body(ChatRequest, request["body"])
    assert body.response_format is not None
    assert (body.temperature, body.seed, body.response_format.type) == (0, 7, "json_schema")
    assert request["custom_id"].startswith("map-")
    assert len(request["custom_id"]) == 4 + 64


def test_the_same_mapping_makes_the_same_ids(source, tmp_path):
    runs = [Run(source, tmp_path / "o.csv", parameters=parameters) for parameters in ({}, {}, {"seed": 1})]
    ids = [[request["custom_id"] for request in run.requests] for run in runs]
    assert ids[0] == ids[1]
    assert not set(ids[0]) & set(ids[2])


def test_where_and_limit_choose_the_asked_rows(source, tmp_path):
    run = Run(source, tmp_path / "o.csv", prompt="{id}", where="text == 'Pay' and amount_paid|int > 4", limit=2)
    assert run.prompts == ["1", "3"]
    assert (tmp_path / "o.csv").read_text().splitlines()[1:] == [
        "1,Pay,5,1,",
        "2,Ship,,,",
        "3,Pay,7,3,",
        "4,,1,,",
        "5,Pay,5,,",
    ]


def test_a_condition_that_fails_on_a_row_is_its_error(source, tmp_path):
    run = Run(source, tmp_path / "o.csv", prompt="{id}", where="amount_paid > 3")
    assert run.planned.failed == 5
    assert "write such as amount|float" in (tmp_path / "o.csv").read_text()


def test_examples_are_turns_before_the_row(source, tmp_path):
    examples = [
        {"text": "I paid 5", "category": "billing", "amount": "5"},
        {"text": "x", "category": "other", "amount": ""},
    ]
    run = Run(
        source,
        tmp_path / "o.csv",
        lambda _: {"category": "other", "amount": 1},
        schema=SCHEMA,
        examples=examples,
        system="Be brief",
    )
    assert bodies(run)[0]["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "I paid 5"},
        {"role": "assistant", "content": '{"category":"billing","amount":5.0}'},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": '{"category":"other","amount":null}'},
        {"role": "user", "content": "Pay"},
    ]
    run = Run(source, tmp_path / "o.csv", column="label", examples=[{"text": "a", "label": "A"}])
    assert [message["content"] for message in bodies(run)[0]["messages"]] == ["a", "A", "Pay"]


def test_embeddings_become_a_vector(source, tmp_path):
    run = Run(source, tmp_path / "o.jsonl", lambda _: [0.5, -1.0], embed="{id} {text}", parameters={"dimensions": 2})
    assert run.requests[0]["url"] == "/v1/embeddings"
    assert bodies(run)[0] == {"model": "demo", "input": "1 Pay", "dimensions": 2}
    row = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
    assert row == {"id": "1", "text": "Pay", "amount_paid": "5", "embedding": [0.5, -1.0], "error": None}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"category": "billing", "amount": "much"}', "'amount' in the answer is not of type number: much"),
        ('{"category": "sales", "amount": 1}', "'category' in the answer is not of type billing|other: sales"),
        ('{"category": "billing"', "the answer is no JSON object: Input data was truncated"),
        ("[1]", "the answer is no JSON object: Expected `object`"),
        ("Sure! billing", "the answer is no JSON object"),
        ("", "the answer is no JSON object"),
        (ValueError("out of memory"), "server_error: out of memory"),
    ],
)
def test_a_bad_answer_is_an_error_of_its_row(tmp_path, answer, problem):
    (tmp_path / "in.csv").write_text("text\nbad\ngood\n")
    run = Run(
        tmp_path / "in.csv",
        tmp_path / "o.jsonl",
        lambda text: answer if text == "bad" else {"category": "other", "amount": 2},
        schema=SCHEMA,
    )
    bad, good = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    assert problem in bad["error"]
    assert (bad["category"], run.written.failed) == (None, 1)
    assert good == {"text": "good", "category": "other", "amount": 2.0, "error": None}


def test_a_fence_of_markdown_is_taken_off(source):
    text = '```json\n{"category": "other", "amount": 1e2}\n```'
    assert mapper(source, schema=SCHEMA).cells(Answer(text)) == ("other", 100.0, None)


def test_an_answer_that_is_cut_off_says_so(source):
    assert mapper(source).cells(Answer("The long", is_cut=True)) == (
        "The long",
        "the answer is cut off: it reached max_tokens",
    )
    with pytest.raises(RowError, match="cut off, since it reached max_tokens"):
        mapper(source, schema=SCHEMA).cells(Answer('{"cat', is_cut=True))


def test_single_responses_are_read_too():
    body = json.loads(chat_line("x", " Hi ", "length"))["response"]["body"]
    assert read_answer(json.dumps(body).encode()) == Answer(" Hi ", is_cut=True)
    with pytest.raises(RowError, match="invalid_value: too hot"):
        read_answer(b'{"error": {"message": "too hot", "code": "invalid_value"}}')
    with pytest.raises(RowError, match="unknown form"):
        read_answer(b"<html>")
    with pytest.raises(RowError, match="the model refused: no"):
        read_answer(b'{"choices": [{"message": {"content": null, "refusal": "no"}}]}')
    assert read_answer(b'{"data": [{"embedding": "AAAAPwAAgL8="}]}').vector == [0.5, -1.0]


def test_an_answer_stays_whatever_is_added_later():
    with Answers() as answers:
        answers.add(
            [failed_line("map-a", "x", "first"), b"\n", chat_line("map-a", "A"), failed_line("map-a", "x", "later")]
        )
        answers.add([b'{"custom_id": "map-b", "response": {"status_code": 200, "body": {"choices": [7]}}}'])
        assert answers.get("map-a").text == "A"
        assert "map-a" in answers
        assert "map-b" not in answers
        for custom_id, problem in (("map-b", "unknown form"), ("map-c", "not answered")):
            with pytest.raises(RowError, match=problem):
                answers.get(custom_id)
        with pytest.raises(MappingError, match="no custom_id"):
            answers.add([b"{}"])


@pytest.mark.parametrize(
    ("spec", "param", "message"),
    [
        (
            {"prompt": "Classify"},
            "prompt",
            "names no column, so every row would be asked the same; name one, such as {id}",
        ),
        ({"prompt": "{txt}"}, "prompt", "did you mean 'text'?"),
        ({"system": "{txt} {text}"}, "system", "did you mean 'text'?"),
        ({"where": "txt == 1"}, "where", "did you mean 'text'?"),
        ({"where": "text =="}, "where", "'where' is no template"),
        ({"where": "1 %}{% if 1"}, "where", "is one expression"),
        ({"column": "text"}, "column", "the table already has a column 'text': choose another `column`"),
        ({"schema": "text: string"}, "schema", "give the property of the schema another name"),
        ({"schema": "error: string"}, "error_column", "the answer already has a column 'error'"),
        ({"error_column": "id"}, "error_column", "choose another `error_column`"),
        ({"schema": "a: string", "column": "b"}, None, "'column' is for free text"),
        ({"schema": "a: strnig"}, "schema", "did you mean 'string'?"),
        ({"embed": "{text}", "schema": "a: string"}, None, "'schema' needs 'prompt'"),
        ({"prompt": None}, None, "give either 'prompt' or 'embed'"),
        ({"promt": "x"}, "promt", "no field 'promt'; did you mean 'prompt'?"),
        ({"limit": 0}, "limit", "must be at least 1"),
        ({"limit": "many"}, "limit", "must be a whole number"),
        ({"parameters": {"messages": []}}, "parameters", "the mapping sets 'messages' itself"),
        ({"examples": [{"text": "a"}]}, "examples", "example 1 has no 'answer'"),
        ({"examples": [{"txt": "a", "answer": "b"}]}, "examples", "example 1 has no 'text'; did you mean 'txt'?"),
        (
            {"schema": SCHEMA, "examples": [{"text": "a", "category": "x", "amount": 1}]},
            "examples",
            "example 1: 'category'",
        ),
    ],
)
def test_errors_name_the_field(source, spec, param, message):
    with pytest.raises(MappingError) as raised:
        mapper(source, **spec)
    assert message in str(raised.value)
    assert raised.value.param == param


def test_large_integers_and_other_types_keep_their_value(source):
    typed = mapper(source, schema="n: integer, ok: boolean, due: date, tags: string[], rate: 1|2")
    cells = typed.cells(Answer('{"n": 9007199254740993, "ok": true, "due": "2024-02-29", "tags": ["a"], "rate": 2}'))
    assert [str(cell) for cell in cells] == ["9007199254740993", "True", "2024-02-29", "['a']", "2", "None"]
    for wrong in ('{"n": 1e300}', '{"n": 1.5}', '{"n": true}', '{"ok": 1}', '{"due": "2023-02-29"}', '{"tags": [1]}'):
        with pytest.raises(RowError, match="is not of type"):
            typed.cells(Answer(wrong))
