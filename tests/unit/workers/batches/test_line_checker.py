"""Checks of a line, and the entry that the plan gets of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.models.capabilities import CAPABILITIES, Capabilities, Feature
from core.models.engine_options import BackendKind
from core.models.model_files import ModelCatalog, ModelConfig, Parameters
from core.schemas.batch import BatchLine
from workers.batches.line_checker import AcceptedLine, LineChecker, RejectedLine
from workers.batches.plan import PlanLine

CATALOG = ModelCatalog(
    [
        ModelConfig(name="plain", aliases=("also-plain",), context_size=1000),
        ModelConfig(name="fake", backend="fake"),
        ModelConfig(name="brief", parameters=Parameters(temperature=0, max_tokens=7)),
        ModelConfig(name="far", backend="openai", base_url=("http://127.0.0.1:9/v1",), aliases=("also-far",)),
    ]
)


@pytest.fixture
def checker() -> LineChecker:
    return LineChecker(CATALOG, share_identical_lines=True)


def planned(
    checker: LineChecker, content: Any = "hello", *, role: str = "user", model: str = "plain", **body: Any
) -> PlanLine:
    """A line of one message; it must be accepted."""
    messages = [{"role": role, "content": content}]
    checked = check(checker, {"model": model, "messages": messages, **body})
    assert isinstance(checked, AcceptedLine)
    return checked.plan


def check(checker: LineChecker, body: dict[str, Any]) -> AcceptedLine | RejectedLine:
    line = {"custom_id": "a", "method": "POST", "url": "/", "body": body}
    return checker.check(BatchLine.model_validate(line), json.dumps(line).encode())


def test_a_line_the_endpoint_would_reject_is_rejected_with_its_problem(checker: LineChecker) -> None:
    hot = check(checker, {"model": "plain", "messages": [{"role": "user", "content": "x"}], "temperature": 7})
    assert isinstance(hot, RejectedLine)
    assert (hot.model, hot.problem.status, hot.problem.param) == ("plain", 400, "temperature")
    unknown = check(checker, {"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]})
    assert isinstance(unknown, RejectedLine)
    assert (unknown.model, unknown.problem.status) == ("gpt-9", 404)
    nameless = check(checker, {"model": 5})
    assert isinstance(nameless, RejectedLine)
    assert nameless.model == ""


def test_a_line_that_asks_for_what_its_backend_lacks_is_rejected(
    checker: LineChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = CAPABILITIES[BackendKind.FAKE]
    less = Capabilities(
        words=able.words, features=able.features - {Feature.LOGIT_BIAS}, keys=able.keys, instead=able.instead
    )
    monkeypatch.setitem(CAPABILITIES, BackendKind.FAKE, less)
    biased = check(checker, {"model": "fake", "messages": [{"role": "user", "content": "x"}], "logit_bias": {"5": 1}})
    assert isinstance(biased, RejectedLine)
    assert (biased.problem.status, biased.problem.param) == (400, "logit_bias")
    assert biased.problem.message.startswith("The model 'fake' runs on the fake backend, which ")


def test_a_line_for_a_server_upstream_is_checked_only_where_it_is_read(checker: LineChecker) -> None:
    messages = [{"role": "critic", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    for name in ("far", "also-far"):
        taken = check(checker, {"model": name, "messages": messages, "temperature": 9, "unknown": 1, "max_tokens": 5})
        assert isinstance(taken, AcceptedLine)
        assert (taken.plan.model, taken.plan.expected_tokens) == ("far", 5)
    wrong = check(checker, {"model": "far", "messages": messages, "max_tokens": "5"})
    assert isinstance(wrong, RejectedLine)
    assert (wrong.problem.status, wrong.problem.param) == (400, "max_tokens")
    unlimited = check(checker, {"model": "far", "messages": messages})
    assert isinstance(unlimited, AcceptedLine)
    assert unlimited.plan.expected_tokens == 0, "the limit of the server is not known"


def test_a_line_for_an_endpoint_that_its_server_lacks_is_rejected() -> None:
    checker = LineChecker(CATALOG, share_identical_lines=True, endpoint="/v1/embeddings")
    rejected = check(checker, {"model": "far", "input": "x"})
    assert isinstance(rejected, RejectedLine)
    assert (
        "does not serve /v1/embeddings. `endpoints` in its file allow /v1/chat/completions" in rejected.problem.message
    )


def test_lines_for_a_shared_alias_are_divided_by_their_custom_id() -> None:
    catalog = ModelCatalog(
        [ModelConfig(name=name, backend="fake", aliases=("all",), weight=1) for name in ("one", "two", "three")]
    )

    def divide(down: tuple[str, ...] = ()) -> list[str]:
        checker = LineChecker(catalog, share_identical_lines=True, down=down)
        planned = []
        for n in range(60):
            body = {"model": "all", "messages": [{"role": "user", "content": "x"}], "temperature": 0}
            line = BatchLine.model_validate({"custom_id": f"{n}", "method": "POST", "url": "/", "body": body})
            checked = checker.check(line, line.model_dump_json().encode())
            assert isinstance(checked, AcceptedLine)
            assert checked.adapter.model == "all"
            planned.append(checked.plan)
        for plan in planned:
            assert planned[plan.duplicate_of].model == plan.model, "the same body of another model is no duplicate"
        return [plan.model for plan in planned]

    first = divide()
    assert {first.count(name) > 8 for name in ("one", "two", "three")} == {True}
    assert divide() == first
    without_two = divide(down=("two",))
    assert "two" not in without_two
    assert all(new == old for new, old in zip(without_two, first, strict=True) if old != "two")


def test_an_alias_is_planned_with_its_model(checker: LineChecker) -> None:
    assert planned(checker, model="also-plain").model == "plain"
    assert (
        planned(checker, model="also-plain").starts == planned(checker).starts != planned(checker, model="brief").starts
    )


def test_the_same_text_is_the_same_start_however_it_is_spelled(checker: LineChecker) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert planned(checker, parts).starts == planned(checker, "hel\nlo").starts
    assert planned(checker, role="developer").starts == planned(checker, role="system").starts
    assert planned(checker, role="user").starts != planned(checker, role="system").starts


def test_an_answer_is_expected_to_be_as_long_as_it_may_be(checker: LineChecker) -> None:
    assert planned(checker, max_tokens=5).expected_tokens == 5
    assert planned(checker, max_tokens=5, max_completion_tokens=6).expected_tokens == 6
    assert planned(checker, model="brief").expected_tokens == 7
    assert planned(checker).expected_tokens == 1000
    assert planned(checker, max_tokens=100_000).expected_tokens == 1000, "not longer than the context"


def test_a_duplicate_names_the_first_line_with_its_body(checker: LineChecker) -> None:
    firsts = [planned(checker, text, model="brief").duplicate_of for text in ("a", "b", "a", "c", "b")]
    assert firsts == [0, 1, 0, 3, 1]


def test_bodies_that_are_not_equal_byte_for_byte_are_no_duplicates(checker: LineChecker) -> None:
    assert planned(checker, temperature=0).duplicate_of == 0
    assert planned(checker, temperature=0.0).duplicate_of == 1
    assert planned(checker, temperature=0).duplicate_of == 0


def test_there_are_no_duplicates_where_answers_may_differ_or_sharing_is_off(checker: LineChecker) -> None:
    assert [planned(checker).duplicate_of for _ in range(3)] == [0, 1, 2]
    separate = LineChecker(CATALOG, share_identical_lines=False)
    assert [planned(separate, model="brief").duplicate_of for _ in range(3)] == [0, 1, 2]
