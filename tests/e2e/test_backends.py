"""One stack with four backends: a batch over all of them, each killed in the middle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml

from tests.support.llama_server import llama_server
from tests.support.processes import command_of
from tests.support.stack import StackProcess, result_lines, start_batch, wait_for, write_lines
from tools.export_demo_hf import export
from tools.phrases import CAPITALS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEMO = Path(__file__).parents[2] / "models" / "demo.gguf"
SLOTS = 2  # so that a batch takes a while
NAMES = ("gguf", "folder", "command", "address")


def write_model(folder: Path, name: str, **keys: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **keys}))


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """Another Millrace, which serves the demo model."""
    folder = tmp_path_factory.mktemp("behind")
    write_model(folder / "models", "demo", parameters={"model": str(DEMO)}, context_size=1024, slots=SLOTS)
    process = StackProcess(folder, folder / "models")
    process.start()
    try:
        yield process
    finally:
        process.close()


@pytest.fixture(scope="module")
def stack(behind: StackProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    pytest.importorskip("torch", reason="needs the extra transformers")
    folder = tmp_path_factory.mktemp("front")
    models, exported = folder / "models", folder / "exported"
    export(DEMO, exported)
    write_model(models, "gguf", parameters={"model": str(DEMO)}, context_size=1024, slots=SLOTS)
    write_model(
        models,
        "folder",
        backend="transformers",
        parameters={"model": str(exported)},
        context_size=1024,
        slots=SLOTS,
        threads=1,
    )
    write_model(models, "command", backend="openai", command=list(llama_server(DEMO)), max_concurrency=SLOTS)
    write_model(models, "address", backend="openai", base_url=behind.url, model="demo", max_concurrency=SLOTS)
    process = StackProcess(folder, models, MILLRACE_SHARD_LINES="20")
    process.start()
    try:
        yield process
    finally:
        process.close()


def question(country: str, model: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is the capital of {country}?"}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 32}
    return {"custom_id": f"{model} {country}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def process_of(model: str, stack: StackProcess, behind: StackProcess) -> psutil.Process:
    """The process that computes a model, wherever it is."""
    if model == "command":
        children = stack.find("engine.upstream.server", '"model":"command"').children()
        return next(child for child in children if str(DEMO) in command_of(child))
    if model == "address":
        return behind.find("engine.process.server")
    return stack.find("engine.process.server", f'"model":"{model}"')


def test_a_batch_over_four_backends_survives_the_end_of_each(
    stack: StackProcess, behind: StackProcess, tmp_path: Path
) -> None:
    client = stack.client()
    listed = {model.id: model for model in client.models.list()}
    assert {name: listed[name].backend for name in NAMES} == {  # type: ignore[attr-defined]
        "gguf": "llama",
        "folder": "transformers",
        "command": "openai",
        "address": "openai",
    }
    lines = [question(country, model) for country in CAPITALS for model in NAMES]
    assert len(lines) == 400
    batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", lines))
    killed: dict[str, int] = {}
    ended: Counter[str] = Counter()
    after: dict[str, str] = {}

    def each_was_killed() -> bool:
        answer = httpx2.get(f"{stack.url}/v1/batches/{batch_id}/output", params=after)
        after["after"] = answer.headers["x-millrace-after"]
        ended.update(json.loads(line)["custom_id"].split()[0] for line in answer.text.splitlines())
        for name in ended.keys() - killed.keys():
            process_of(name, stack, behind).kill()
            killed[name] = ended[name]
        return killed.keys() == set(NAMES)

    wait_for(each_was_killed, "each model has ended some lines", 60)
    assert all(number < len(CAPITALS) for number in killed.values()), f"each was in the middle: {killed}"
    wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch completes", 150)

    batch = client.batches.retrieve(batch_id)
    assert batch.error_file_id is None
    answers: Any = result_lines(client, batch.output_file_id)
    assert [line["custom_id"] for line in answers] == [line["custom_id"] for line in lines], "every line once"
    for line in answers:
        model, country = line["custom_id"].split(" ", 1)
        body = line["response"]["body"]
        assert body["model"] == model
        assert body["choices"][0]["message"]["content"] == f"The capital of {country} is {CAPITALS[country]}."
