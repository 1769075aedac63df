"""`response_format` and `structured_outputs` through the official client: plain, streamed and in a batch. On the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from openai.lib.streaming.chat import ContentDoneEvent
from openai.types import Batch
from pydantic import BaseModel, ConfigDict, Field

from core.settings import ROOT
from tests.support.stack import StackProcess, result_lines, start_batch, wait_for, write_lines

TICKETS = [
    json.loads(line)["body"]["messages"]
    for line in (ROOT / "batch_inputs" / "support_tickets.jsonl").read_text().splitlines()[:12]
]
LABEL = {"category": "shipping", "priority": "medium"}  # of the first ticket
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]


class Label(BaseModel):
    model_config = ConfigDict(extra="forbid")

    category: Literal["billing", "shipping", "technical", "account"]
    priority: Literal["low", "medium", "high"]


class Order(BaseModel):
    """A schema the model was not trained for: only the grammar produces a valid answer."""

    number: Literal[1, 22, 333]
    label: Label
    tags: list[Literal["new", "old"]] = Field(max_length=2)
    is_paid: bool


def by_schema(schema: dict[str, Any], name: str = "label") -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}}


@pytest.mark.parametrize("kind", [Label, Order])
def test_an_answer_is_parsed_into_the_requested_class(demo: OpenAI, kind: type[BaseModel]) -> None:
    answer = demo.chat.completions.parse(model="demo", messages=TICKETS[0], response_format=kind, max_tokens=200)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, kind)


def test_a_streamed_answer_is_parsed_too_and_is_the_plain_one(demo: OpenAI) -> None:
    plain = demo.chat.completions.parse(model="demo", messages=TICKETS[0], response_format=Label)
    with demo.chat.completions.stream(model="demo", messages=TICKETS[0], response_format=Label) as stream:
        (done,) = [event for event in stream if isinstance(event, ContentDoneEvent)]
    assert done.parsed == plain.choices[0].message.parsed
    assert done.content == plain.choices[0].message.content


def test_the_readmes_example_prints_its_output(demo: OpenAI, capsys: pytest.CaptureFixture[str]) -> None:
    section = (ROOT / "README.md").read_text().split("## Structured answers")[1]
    code = section.split("```python\n")[1].split("```")[0]
    exec(code, {"client": demo, "__name__": __name__})
    assert capsys.readouterr().out.strip() == code.split("# ")[-1].strip()


def test_several_streamed_answers_follow_the_schema_each(demo: OpenAI) -> None:
    answers = ["", "", ""]
    request: Any = by_schema(Label.model_json_schema())
    stream = demo.chat.completions.create(
        model="demo", messages=FRANCE, n=3, temperature=2, seed=5, stream=True, **request
    )
    for chunk in stream:
        for choice in chunk.choices:
            answers[choice.index] += choice.delta.content or ""
    assert len({Label.model_validate_json(answer).model_dump_json() for answer in answers}) > 1


def test_a_json_object_is_one(demo: OpenAI) -> None:
    answer = demo.chat.completions.create(
        model="demo", messages=TICKETS[0], response_format={"type": "json_object"}, max_tokens=60
    )
    assert answer.choices[0].finish_reason == "stop"
    assert json.loads(answer.choices[0].message.content or "") == LABEL


OUTPUTS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "choice": ({"choice": ["Rome", "Paris"]}, {"Rome", "Paris"}),
    "regex": ({"regex": "[a-c]{2}d"}, {f"{a}{b}d" for a in "abc" for b in "abc"}),
    "grammar": ({"grammar": 'start: "the " ("sun" | "moon")'}, {"the sun", "the moon"}),
    "json": ({"json": {"enum": [1, "two"]}}, {"1", '"two"'}),
}


@pytest.mark.parametrize(("outputs", "answers"), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_structured_outputs_hold_the_answer_to_them(demo: OpenAI, outputs: dict[str, Any], answers: set[str]) -> None:
    answer = demo.chat.completions.create(
        model="demo", messages=FRANCE, extra_body={"structured_outputs": outputs}, temperature=2
    )
    assert answer.choices[0].message.content in answers
    assert answer.choices[0].finish_reason == "stop"


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a keyword": (by_schema({"type": "object", "not": {}}), "response_format", "'not'"),
    "a keyword deep inside": (
        by_schema({"properties": {"a": {"items": {"uniqueItems": True}}}}),
        "response_format",
        "'uniqueItems' at '#/properties/a/items'",
    ),
    "a schema of vLLM's": ({"structured_outputs": {"json": {"contains": {}}}}, "structured_outputs", "'contains'"),
    "a regex": ({"structured_outputs": {"regex": "(?=a)a"}}, "structured_outputs", "look-around"),
    "a grammar": ({"structured_outputs": {"grammar": "start: missing"}}, "structured_outputs", "missing"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("extra", "param", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_an_unsupported_constraint_is_a_400_that_names_it(
    demo: OpenAI, extra: dict[str, Any], param: str, said: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        demo.chat.completions.create(model="demo", messages=FRANCE, stream=stream, extra_body=extra)
    assert (caught.value.code, caught.value.param) == ("invalid_schema", param)
    assert said in caught.value.message


# In a batch

NUM_DUPLICATES = 3


def lines_of_a_batch() -> Iterator[dict[str, Any]]:
    """Tickets under one system prompt: some equal, one whose answer is cut off, one that fails."""
    plain = {"model": "demo", "temperature": 0, **by_schema(Label.model_json_schema())}
    bodies = {f"ticket-{number}": {**plain, "messages": messages} for number, messages in enumerate(TICKETS)}
    bodies |= {
        f"duplicate-{number}": {**plain, "messages": TICKETS[0], "max_tokens": 50} for number in range(NUM_DUPLICATES)
    }
    bodies["cut"] = {**plain, "messages": TICKETS[1], "max_tokens": 4}
    bodies["refused"] = {**plain, "messages": TICKETS[2], **by_schema({"not": {}})}
    for custom_id, body in bodies.items():
        yield {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.fixture(scope="module")
def batch(answering: StackProcess) -> Batch:
    """That batch, completed."""
    path = write_lines(answering.folder / "structured.jsonl", list(lines_of_a_batch()))
    with answering.client() as client:
        batch_id = start_batch(client, path)
        wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch is completed")
        return client.batches.retrieve(batch_id)


@pytest.fixture
def answers(demo: OpenAI, batch: Batch) -> dict[str, Any]:
    """The bodies of the output file by `custom_id`."""
    lines: list[Any] = result_lines(demo, batch.output_file_id)
    return {line["custom_id"]: line["response"]["body"] for line in lines}


def test_every_answer_of_a_batch_matches_its_schema(batch: Batch, answers: dict[str, Any]) -> None:
    assert len(answers) == len(TICKETS) + NUM_DUPLICATES
    for answer in answers.values():
        Label.model_validate_json(answer["choices"][0]["message"]["content"])
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(answers), 2)


def test_a_line_that_was_cut_and_one_that_cannot_be_are_errors_of_their_own(demo: OpenAI, batch: Batch) -> None:
    lines: list[Any] = result_lines(demo, batch.error_file_id)
    errors = {line["custom_id"]: line["response"]["body"]["error"] for line in lines}
    assert {name: (error["code"], error["param"]) for name, error in errors.items()} == {
        "cut": ("incomplete_output", "max_tokens"),
        "refused": ("invalid_schema", "response_format"),
    }
    assert "'not'" in errors["refused"]["message"]


def test_a_shared_prefix_is_computed_once_and_counted_as_cached(batch: Batch, answers: dict[str, Any]) -> None:
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers.values()]
    assert sum(tokens > 30 for tokens in cached) > len(TICKETS) / 2, "the system prompt has more than 30 tokens"
    assert batch.usage is not None
    assert batch.usage.input_tokens_details.cached_tokens >= sum(cached)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens


def test_the_same_line_thrice_is_answered_once_and_each_has_its_answer(answers: dict[str, Any]) -> None:
    duplicates = [answers[f"duplicate-{number}"] for number in range(NUM_DUPLICATES)]
    assert len({answer["id"] for answer in duplicates}) == NUM_DUPLICATES
    assert len({json.dumps(answer["choices"]) for answer in duplicates}) == 1
    usages = [answer["usage"] for answer in duplicates]
    not_run = [usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] for usage in usages]
    assert sum(not_run) >= NUM_DUPLICATES - 1
