"""Routing between the models of a stack: fallbacks of chats, and shares of a common alias."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.models.models_folder import load_models
from tests.support.fault_server import FaultServer, status
from tests.support.guarded import Guarded, Key
from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

HELLO: Any = [{"role": "user", "content": "hello"}]
HEADER = "x-millrace-fallback"


@pytest.fixture(scope="module")
def refusing() -> Iterator[FaultServer]:
    """A server that does not have the model."""
    with FaultServer(faults=[status(404, "no such model")] * 1000) as server:
        yield server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, refusing: FaultServer) -> Path:
    folder = tmp_path_factory.mktemp("routing") / "models"
    folder.mkdir()
    broken, refused = "parameters: {model: broken.gguf}", f"backend: openai\nbase_url: {refusing.url}"
    files = {
        "fake": "backend: fake",
        "one": "backend: fake\naliases: [all]\nweight: 3",
        "two": "backend: fake\naliases: [all]\nweight: 1",
        "bad": f"{broken}\naliases: [all]\nweight: 9\nfallback: [bad-too, unknown, fake]",
        "bad-too": f"{broken}\nfallback: bad",
        "refused": f"{refused}\nfallback: [bad-too]",
        "nowhere": "backend: openai\nbase_url: http://127.0.0.1:1/v1\nfallback: fake",
        "alone": f"{refused}\nfallback: [bad-loop]",
        "bad-loop": f"{broken}\nfallback: [alone]",
    }
    for name, keys in files.items():
        (folder / f"{name}.yaml").write_text(f"name: {name}\n{keys}\n")
    (folder / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    return folder


@pytest.fixture(scope="module")
def guarded(models: Path) -> Iterator[Guarded]:
    process = StackProcess(models.parent, models)
    process.start()
    guarded = Guarded(process)
    try:
        wait_for(lambda: guarded.owner.client.models.retrieve("bad").status == "failed", "the engine does not start")  # type: ignore[attr-defined]
        yield guarded
    finally:
        guarded.close()


@pytest.fixture(scope="module")
def key(guarded: Guarded) -> Key:
    return guarded.key()


def chat(key: Key, model: str, **more: Any) -> httpx2.Response:
    return key.http.post("/v1/chat/completions", json={"model": model, "messages": HELLO, **more})


@pytest.mark.parametrize("model", ["bad", "bad-too", "refused"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_answered_by_the_first_fallback_that_can(key: Key, model: str, stream: bool) -> None:
    answer, direct = chat(key, model, stream=stream), chat(key, "fake", stream=stream)
    assert answer.status_code == 200, answer.text
    assert answer.headers[HEADER] == "fake"
    assert HEADER not in direct.headers
    assert '"model":"fake"' in answer.text
    if not stream:
        assert answer.json()["choices"] == direct.json()["choices"]


def test_a_stream_waits_in_silence_for_a_server_that_is_not_there_and_falls_back(key: Key) -> None:
    answer = chat(key, "nowhere", stream=True)
    assert (answer.status_code, answer.headers[HEADER]) == (200, "fake")
    assert answer.text.startswith("data: "), "no comment came before, with which the headers would have been sent"


def test_a_kept_chat_and_a_response_are_of_the_model_that_answered(key: Key) -> None:
    kept = chat(key, "refused", store=True).json()
    assert key.client.chat.completions.retrieve(kept["id"]).model == "fake"
    response = key.http.post("/v1/responses", json={"model": "bad", "input": "hello"})
    assert (response.status_code, response.headers[HEADER], response.json()["model"]) == (200, "fake", "fake")


def test_without_a_fallback_that_can_the_error_is_that_of_the_model(key: Key) -> None:
    answer = chat(key, "alone")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_not_found")
    assert HEADER not in answer.headers


def test_an_error_of_the_request_is_no_reason_to_fall_back(key: Key) -> None:
    answer = chat(key, "bad", temperature=7)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "temperature")
    assert HEADER not in answer.headers
    job = key.http.post("/v1/jobs", json={"model": "bad", "messages": HELLO})
    assert (job.status_code, job.json()["error"]["code"]) == (503, "model_not_ready")


def test_a_key_falls_back_only_to_models_that_it_may_use(guarded: Guarded) -> None:
    answer = chat(guarded.key(models=["refused", "bad-too"]), "refused")
    assert answer.status_code == 502
    allowed = chat(guarded.key(models=["refused", "bad-too", "bad", "fake"]), "refused")
    assert (allowed.status_code, allowed.headers[HEADER]) == (200, "fake")


def test_a_shared_alias_is_listed_once_and_answered_by_one_of_its_models(key: Key, guarded: Guarded) -> None:
    listed = {model.id: model for model in key.client.models.list()}
    assert len(listed) == 10
    shared: Any = listed["all"]
    assert shared.shared_by == ["bad", "one", "two"]
    assert (shared.root, shared.status) == ("one", "ready")
    assert {chat(key, "all", max_tokens=1).json()["model"] for _ in range(50)} == {"one", "two"}
    refused = guarded.owner.http.post("/v1/models/all/unload")
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        400,
        "'all' is an alias of several models. Name one of them: bad, one, two.",
    )


def test_lines_of_a_batch_are_divided_by_custom_id_and_never_fall_back(key: Key, models: Path, tmp_path: Path) -> None:
    lines = [*batch_lines(20, "all", max_tokens=2), {**batch_lines(1, "refused")[0], "custom_id": "refused"}]
    catalog = load_models(models)
    expected = {f"line-{n}": catalog.pick("all", f"line-{n}", down={"bad"}) for n in range(20)}
    for _ in range(2):
        batch_id = start_batch(key.client, write_lines(tmp_path / "in.jsonl", lines))
        wait_for(lambda batch_id=batch_id: key.client.batches.retrieve(batch_id).status == "completed", "it ends")  # type: ignore[misc]
        batch = key.client.batches.retrieve(batch_id)
        answered: Any = result_lines(key.client, batch.output_file_id)
        models_of = {line["custom_id"]: line["response"]["body"]["model"] for line in answered}
        assert models_of == {line: model.name for line, model in expected.items() if model is not None}
        (failed,) = result_lines(key.client, batch.error_file_id)
        assert failed["custom_id"] == "refused"
