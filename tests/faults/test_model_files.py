"""Model files that are missing or incomplete: an error names the model, and the other models are served. F16."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.settings import ROOT, Settings
from tests.faults.load import ask, expected_answer, new_prompt, start_batch, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack
from tests.support.stack import clean_environment, wait_for

pytestmark = pytest.mark.timeout(180)

DEMO = ROOT / "models" / "demo.gguf"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStack]:
    """A stack with four models: a fake one, an intact one, one without its file, and one with a truncated file."""
    stack = FaultStack(tmp_path_factory.mktemp("model-files"), MILLRACE_SILENCE_SECONDS="3")
    models = stack.folder / "models"
    for name in ("whole", "lost", "short"):
        (models / f"{name}.yaml").write_text(f"name: {name}\nparameters: {{model: {name}.gguf}}\nslots: 2\n")
    shutil.copyfile(DEMO, models / "whole.gguf")
    (models / "short.gguf").write_bytes(DEMO.read_bytes()[: DEMO.stat().st_size // 2])
    with stack:
        yield stack


def checks(stack: FaultStack) -> dict[str, str]:
    answer: dict[str, Any] = httpx2.get(f"{stack.url}/readyz", timeout=30).json()
    return {name: message for name, message in answer["checks"].items() if message != "ok"}


def num_crashes(stack: FaultStack, model: str) -> int:
    return int(stack.query("SELECT count(*) FROM engine_crashes WHERE model = :model", model=model)[0][0])


def check_serves(stack: FaultStack, oracle: Oracle) -> None:
    prompt = new_prompt()
    assert stack.retry(lambda: ask(stack, prompt)) == expected_answer(prompt)
    assert wait_batch(stack, start_batch(stack, 8)) == "completed"
    oracle.check()


@pytest.fixture(scope="module")
def served_oracle(served: FaultStack) -> Iterator[Oracle]:
    oracle = Oracle(served)
    yield oracle
    oracle.close()


def test_models_with_missing_or_truncated_files_are_named_and_the_others_are_served(
    served: FaultStack, served_oracle: Oracle
) -> None:
    """F16: at start. Each model is tried once, without a storm of restarts."""
    wait_for(lambda: len(checks(served)) == 2, "the other two are ready", 30)
    messages = checks(served)
    none = "its engine does not start: "
    assert messages["model lost"] == none + "There is no model file lost.gguf."
    assert messages["model short"].startswith(none + "short.gguf is not a model that llama.cpp can load: tensor ")
    assert "incomplete" in messages["model short"], "llama.cpp's own reason"
    assert "Not served:\n" in served.process.output
    for model in ("lost", "short"):
        assert f"  {model}: {messages[f'model {model}']}\n" in served.process.output
    chat = {"model": "short", "messages": [{"role": "user", "content": "hello"}]}
    with served.http() as http:
        statuses = {each["id"]: each["status"] for each in http.get("/v1/models").json()["data"]}
        refused = http.post("/v1/chat/completions", json=chat, timeout=5)
    expected = {"fake": "ready", "whole": "ready", "lost": "missing", "short": "failed"}
    assert {name: statuses[name] for name in expected} == expected
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_ready")
    metrics = served.process.metrics()
    for model, is_ready in (("fake", 1), ("whole", 1), ("lost", 0), ("short", 0)):
        assert f'millrace_model_ready{{model="{model}"}} {is_ready}.0' in metrics
    check_serves(served, served_oracle)
    log = dict(served.logs())["worker.log"]
    assert "There is no model file" in log
    for model, code in (("lost", 4), ("short", 3)):
        assert log.count(f'"name": "engine-{model}", "exit_code": {code}') == 1


def test_a_model_is_served_again_when_its_missing_file_is_back(served: FaultStack, served_oracle: Oracle) -> None:
    """F16: while it is served. Its engine is restarted with growing delays, without a manual step."""
    file = served.folder / "models" / "whole.gguf"
    away = file.rename(file.with_suffix(".away"))
    served.process.find("engine.process.server", '"model":"whole"').kill()
    wait_for(
        lambda: "There is no model file whole.gguf." in checks(served).get("model whole", ""),
        "the check names the file",
        30,
    )
    check_serves(served, served_oracle)
    assert num_crashes(served, "whole") == 1, "a missing file does not count as a crash that degrades the model"
    away.rename(file)
    wait_for(lambda: "model whole" not in checks(served), "the model is served again", 60)


@pytest.mark.parametrize("program", ["worker", "serve"])
def test_without_any_model_it_exits_with_a_message_that_names_the_file(
    program: str, settings: Settings, database: object, tmp_path: Path
) -> None:
    """F16: the file of the only model is missing."""
    models = tmp_path / "lost-models"
    models.mkdir()
    (models / "lost.yaml").write_text("name: lost\nparameters: {model: lost.gguf}\n")
    environment = {
        "MILLRACE_STATE_DIR": str(tmp_path / "state"),
        "MILLRACE_MODELS_DIR": str(models),
        "DATABASE_URL": settings.database_url or "",
        "REDIS_URL": settings.redis_url or "",
        "MILLRACE_PORT": "0",
    }
    done = subprocess.run(
        [str(Path(sys.executable).with_name("millrace")), program, "--device", "cpu"],
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert str(models / "lost.gguf") in done.stderr
    assert "Traceback" not in done.stderr
