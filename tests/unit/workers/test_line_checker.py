"""What is judged of a line, and what the plan learns of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.model_files import ModelCatalog, ModelConfig, Parameters
from core.schemas.batch import BatchLine
from workers.batches.line_checker import LineChecker, RejectedLine
from workers.batches.plan import PlanLine

CATALOG = ModelCatalog(
    [
        ModelConfig(name="plain", aliases=("also-plain",), context_size=1000),
        ModelConfig(name="brief", parameters=Parameters(temperature=0, max_tokens=7)),
    ]
)


@pytest.fixture
def judge() -> LineChecker:
    return LineChecker(CATALOG, share_identical_lines=True)


def judged(
    judge: LineChecker, content: Any = "hello", *, role: str = "user", model: str = "plain", **body: Any
) -> PlanLine:
    """A line of one message; it must be accepted."""
    messages = [{"role": role, "content": content}]
    verdict = verdict_on(judge, {"model": model, "messages": messages, **body})
    assert isinstance(verdict, PlanLine)
    return verdict


def verdict_on(judge: LineChecker, body: dict[str, Any]) -> PlanLine | RejectedLine:
    line = {"custom_id": "a", "method": "POST", "url": "/", "body": body}
    return judge.judge(BatchLine.model_validate(line), json.dumps(line).encode())


def test_what_the_endpoint_would_refuse_is_refused_with_its_problem(judge: LineChecker) -> None:
    hot = verdict_on(judge, {"model": "plain", "messages": [{"role": "user", "content": "x"}], "temperature": 7})
    assert isinstance(hot, RejectedLine)
    assert (hot.model, hot.problem.status, hot.problem.param) == ("plain", 400, "temperature")
    unknown = verdict_on(judge, {"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]})
    assert isinstance(unknown, RejectedLine)
    assert (unknown.model, unknown.problem.status) == ("gpt-9", 404)
    nameless = verdict_on(judge, {"model": 5})
    assert isinstance(nameless, RejectedLine)
    assert nameless.model == ""


def test_an_alias_is_planned_with_its_model(judge: LineChecker) -> None:
    assert judged(judge, model="also-plain").model == "plain"
    assert judged(judge, model="also-plain").starts == judged(judge).starts != judged(judge, model="brief").starts


def test_the_same_text_is_the_same_start_however_it_is_spelled(judge: LineChecker) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert judged(judge, parts).starts == judged(judge).starts
    assert judged(judge, role="developer").starts == judged(judge, role="system").starts
    assert judged(judge, role="user").starts != judged(judge, role="system").starts


def test_an_answer_is_expected_to_be_as_long_as_it_may_be(judge: LineChecker) -> None:
    assert judged(judge, max_tokens=5).expected_tokens == 5
    assert judged(judge, max_tokens=5, max_completion_tokens=6).expected_tokens == 6
    assert judged(judge, model="brief").expected_tokens == 7
    assert judged(judge).expected_tokens == 1000
    assert judged(judge, max_tokens=100_000).expected_tokens == 1000, "not longer than the context"


def test_a_twin_names_the_first_line_with_its_body(judge: LineChecker) -> None:
    twins = [judged(judge, text, model="brief").twin_of for text in ("a", "b", "a", "c", "b")]
    assert twins == [0, 1, 0, 3, 1]


def test_bodies_that_are_not_equal_byte_for_byte_are_no_twins(judge: LineChecker) -> None:
    assert judged(judge, temperature=0).twin_of == 0
    assert judged(judge, temperature=0.0).twin_of == 1
    assert judged(judge, temperature=0).twin_of == 0


def test_there_are_no_twins_where_answers_may_differ_or_sharing_is_off(judge: LineChecker) -> None:
    assert [judged(judge).twin_of for _ in range(3)] == [0, 1, 2]
    alone = LineChecker(CATALOG, share_identical_lines=False)
    assert [judged(alone, model="brief").twin_of for _ in range(3)] == [0, 1, 2]
