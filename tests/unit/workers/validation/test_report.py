"""The report lists all errors of a file at once, and counts tokens as the engine does."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from core.models.model_files import ModelCatalog, ModelConfig, Parameters
from core.models.models_folder import load_models
from core.schemas.batch_validation import BatchValidation
from core.settings import ROOT, Settings
from engine.backends.llama.tokenizer import load_vocabulary
from engine.errors import ModelFailed
from engine.inputs.dry_run import CompileBudget
from engine.inputs.prompt_encoder import PromptEncoder
from engine.types import ChatPrompt, Request
from tests.support.stack import batch_lines, write_lines
from tests.support.tiny_models import ENCODER_CONTEXT, TinyModel, write_tiny_model
from tests.support.wrong_lines import EXPECTED, summarize, write_wrong_lines
from workers.validation.report import first_endpoint, validate

FAKE = ModelCatalog(
    [
        ModelConfig(name="fake", backend="fake", context_size=4096),
        ModelConfig(name="brief", backend="fake", context_size=128, parameters=Parameters(max_tokens=7)),
    ]
)
CHAT = "/v1/chat/completions"


def check(
    path: Path,
    catalog: ModelCatalog = FAKE,
    *,
    endpoint: str | None = CHAT,
    max_errors: int = 100,
    budget: CompileBudget | None = None,
    **settings: Any,
) -> BatchValidation:
    with path.open("rb") as stream:
        return validate(stream, endpoint, catalog, Settings(**settings), max_errors=max_errors, budget=budget)


def test_every_mistake_of_a_file_is_found_in_one_go(tmp_path: Path) -> None:
    report = check(write_wrong_lines(tmp_path / "in.jsonl"))
    assert summarize([error.model_dump() for error in report.errors]) == EXPECTED
    assert (report.is_valid, report.lines, report.num_errors) == (False, 12, 10)
    assert (report.lines_failing, report.lines_over_context) == (4, 1)
    assert report.models[0].lines == 2


def test_errors_beyond_the_list_are_counted(tmp_path: Path) -> None:
    report = check(write_wrong_lines(tmp_path / "in.jsonl"), max_errors=3)
    assert (len(report.errors), report.num_errors) == (3, 10)


def test_a_file_whose_lines_only_fail_is_still_a_batch(tmp_path: Path) -> None:
    lines = batch_lines(2, "gpt-9")
    report = check(write_lines(tmp_path / "in.jsonl", lines))
    assert report.is_valid
    assert [(error.custom_id, error.fails) for error in report.errors] == [("line-0", "line"), ("line-1", "line")]
    assert report.models == []


def test_an_empty_file_and_one_with_too_many_lines_are_no_batches(tmp_path: Path) -> None:
    assert [error.code for error in check(write_lines(tmp_path / "none.jsonl", [])).errors] == ["empty_file"]
    report = check(write_lines(tmp_path / "many.jsonl", batch_lines(9)), batch_lines=5)
    assert [(error.code, error.line) for error in report.errors] == [("too_many_tasks", 6)]
    assert (report.lines, report.models[0].lines) == (9, 5)


def test_an_answer_has_the_room_its_prompt_leaves(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        *batch_lines(1, "brief", n=3),
        *batch_lines(1, "fake"),
        *batch_lines(1, "brief", max_tokens=1000),
    ]
    for index, line in enumerate(lines):
        line["custom_id"] = str(index)
    report = check(write_lines(tmp_path / "in.jsonl", lines))
    room = {each.model: each for each in report.models}
    prompt = room["fake"].prompt_tokens
    assert room["brief"].prompt_tokens == 2 * prompt
    assert room["brief"].max_output_tokens == 3 * 7 + 128 - prompt
    assert room["fake"].max_output_tokens == 4096 - prompt


def test_inputs_that_a_model_cannot_embed_are_found(tmp_path: Path) -> None:
    embeds = ModelCatalog([ModelConfig(name="embeds", backend="fake", context_size=128, embeddings=True)])
    inputs: list[Any] = ["short", "x" * 200, ["short", "x" * 127], [[70] * 128, [70] * 129]]
    lines: list[dict[str, Any]] = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "embeds", "input": each},
        }
        for number, each in enumerate(inputs)
    ]
    report = check(write_lines(tmp_path / "in.jsonl", lines), embeds, endpoint=None)
    assert summarize([error.model_dump() for error in report.errors]) == [
        (2, "context_length_exceeded", "body.input", "line"),
        (4, "context_length_exceeded", "body.input", "line"),
    ]
    assert (report.lines_failing, report.lines_over_context, report.models[0].lines) == (2, 2, 2)


def test_the_longest_input_is_found_for_a_model_without_its_weights(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "bert.gguf", TinyModel.BERT)
    bert = ModelConfig(name="bert", embeddings=True, context_size=4096, parameters=Parameters(model=str(path)))
    body = {"model": "bert", "input": [[70] * (ENCODER_CONTEXT + 1)]}
    lines: list[dict[str, Any]] = [{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": body}]
    report = check(write_lines(tmp_path / "in.jsonl", lines), ModelCatalog([bert]), endpoint=None)
    assert [error.code for error in report.errors] == ["context_length_exceeded"]
    assert f"{ENCODER_CONTEXT} at most" in report.errors[0].message


def test_tokens_are_those_of_the_models_own_vocabulary_and_template() -> None:
    tickets = ROOT / "batch_inputs" / "support_tickets.jsonl"
    report = check(tickets, load_models(ROOT / "models"))
    encoder = PromptEncoder(load_vocabulary(ROOT / "models" / "demo.gguf"), template=None, context_size=512)
    bodies = [json.loads(line)["body"] for line in tickets.read_text().splitlines()]
    counts = [len(encoder.encode(Request(id="", prompt=ChatPrompt(messages=body["messages"])))) for body in bodies]
    assert report.prompt_tokens == sum(counts)
    assert (report.is_valid, report.lines, report.num_errors) == (True, len(bodies), 0)


def numbered_line(number: int, **more: Any) -> dict[str, Any]:
    return {**batch_lines(1, **more)[0], "custom_id": f"line-{number}"}


def schema_of(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def test_schemas_and_grammars_that_do_not_compile_are_found_before_anything_runs(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        numbered_line(1, response_format=schema_of({"type": "object"})),
        numbered_line(2, response_format=schema_of({"type": "object", "properties": {"a": {"not": {}}}})),
        numbered_line(3, structured_outputs={"regex": "(a"}),
        numbered_line(4, structured_outputs={"grammar": "start: oops"}),
        numbered_line(5, structured_outputs={"json": {"type": "integer", "minimum": 5, "maximum": 3}}),
    ]
    report = check(write_lines(tmp_path / "in.jsonl", lines))
    assert summarize([error.model_dump() for error in report.errors]) == [
        (2, "invalid_schema", "body.response_format", "line"),
        (3, "invalid_schema", "body.structured_outputs", "line"),
        (4, "invalid_schema", "body.structured_outputs", "line"),
        (5, "invalid_schema", "body.structured_outputs", "line"),
    ]
    assert "'not' at '#/properties/a'" in report.errors[0].message
    assert (report.is_valid, report.lines_failing, report.models[0].lines, report.lines_unchecked) == (True, 4, 1, 0)


def test_lines_beyond_the_compile_budget_are_counted_as_unchecked(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        numbered_line(number, response_format=schema_of({"title": f"{min(number, 3)}"})) for number in range(8)
    ]
    path = write_lines(tmp_path / "in.jsonl", lines)
    report = check(path, budget=CompileBudget(constraints=2))
    assert (report.num_errors, report.lines_unchecked, report.models[0].lines) == (0, 6, 8)
    assert check(path).lines_unchecked == 0


def test_a_model_that_is_broken_is_no_fault_of_the_lines(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    broken = ModelConfig(name="broken", parameters=Parameters(model=str(tmp_path / "broken.gguf")))
    with pytest.raises(ModelFailed, match="not a model"):
        check(write_lines(tmp_path / "in.jsonl", batch_lines(1, "broken")), ModelCatalog([broken]))


@pytest.mark.parametrize("content", [b"", b"{oops\n", b"[]\n", b'{"url": 5}\n', b'{"url": "/v1/nothing"}\n'])
def test_without_an_endpoint_it_is_the_first_lines_or_chat(content: bytes) -> None:
    stream = io.BytesIO(content)
    assert first_endpoint(stream, 100) == CHAT
    assert stream.tell() == 0


def test_lines_for_a_server_upstream_are_estimated_and_counted_as_unchecked(tmp_path: Path) -> None:
    far = ModelConfig(name="far", backend="openai", base_url=("http://127.0.0.1:9/v1",))
    lines = batch_lines(2, "far", max_tokens=30, unknown="x" * 400)
    report = check(write_lines(tmp_path / "in.jsonl", lines), ModelCatalog([far]))
    (model,) = report.models
    assert (report.num_errors, report.lines_unchecked, model.lines, model.max_output_tokens) == (0, 2, 2, 60)
    assert 200 < model.prompt_tokens < 300, "one token for four bytes"
