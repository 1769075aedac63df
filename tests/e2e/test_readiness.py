"""/readyz of a real stack depends on whether its processes work, not only on whether they run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from core.readiness import check_workers
from core.settings import Settings
from db import workers
from tests.support.stack import StackProcess, clean_environment, wait_for
from workers.context import Database

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A stack that reports a process as silent after four seconds."""
    folder = tmp_path_factory.mktemp("watched")
    models = folder / "models"
    models.mkdir()
    (models / "fake.yaml").write_text("name: fake\nbackend: fake\n")
    process = StackProcess(folder, models, MILLRACE_SILENCE_SECONDS="4")
    process.start()
    yield process
    process.close()


def ready(stack: StackProcess) -> httpx2.Response:
    return httpx2.get(f"{stack.url}/readyz", timeout=30)


def is_ready(stack: StackProcess) -> bool:
    return ready(stack).status_code == 200


@pytest.mark.parametrize(
    ("process", "check", "message"),
    [
        ("workers.consumers.main chat", "model fake", "its chat worker sent its last heartbeat"),
        ("workers.consumers.main batch", "model fake", "its batch worker sent its last heartbeat"),
        ("workers.consumers.main clerk", "clerk", "its clerk worker sent its last heartbeat"),
        ("engine.process.server", "model fake", "its engine's loop has not run for"),
    ],
)
def test_a_frozen_process_makes_the_stack_unready(
    watched: StackProcess, process: str, check: str, message: str
) -> None:
    wait_for(lambda: is_ready(watched), "the stack is ready", 20)
    frozen = watched.find(*process.split())
    frozen.suspend()
    try:
        wait_for(lambda: message in ready(watched).json()["checks"][check], "the check fails with its reason", 20)
        answer = ready(watched).json()
        assert answer["status"] == "unavailable"
        assert set(answer["advice"]) == {check}
        assert httpx2.get(f"{watched.url}/healthz").status_code == 200, "the api itself works"
    finally:
        frozen.resume()
    wait_for(lambda: is_ready(watched), "the stack is ready again", 20)


def test_without_the_broker_only_the_queue_check_fails(watched: StackProcess) -> None:
    valkey = watched.find("valkey-server")
    valkey.suspend()
    try:
        wait_for(lambda: not is_ready(watched), "the stack is not ready", 20)
        checks = ready(watched).json()["checks"]
        assert [name for name, message in checks.items() if message != "ok"] == ["queue"]
    finally:
        valkey.resume()
    wait_for(lambda: is_ready(watched), "the stack is ready again", 20)


def test_without_the_database_its_check_fails(watched: StackProcess) -> None:
    postmaster = watched.find("bin/postgres", "-D")
    frozen: list[psutil.Process] = [postmaster, *postmaster.children(recursive=True)]
    for process in frozen:
        process.suspend()
    try:
        answer = ready(watched)
        assert answer.status_code == 503
        assert answer.json()["checks"]["database"] == "does not answer (TimeoutError)"
        assert httpx2.get(f"{watched.url}/metrics", timeout=30).status_code == 200
    finally:
        for process in frozen:
            process.resume()
    wait_for(lambda: is_ready(watched), "the stack is ready again", 20)


def test_a_model_that_cannot_be_loaded_ends_its_worker_and_the_reason_is_reported(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    models = tmp_path / "broken"
    models.mkdir()
    (models / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    (models / "broken.yaml").write_text("name: broken\nparameters: {model: broken.gguf}\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "workers", "--device", "cpu"],
        env=clean_environment()
        | {
            "MILLRACE_STATE_DIR": str(tmp_path / "state"),
            "MILLRACE_MODELS_DIR": str(models),
            "DATABASE_URL": settings.database_url or "",
            "REDIS_URL": settings.redis_url or "",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "millrace worker: The model broken did not load." in done.stderr
    with database.begin() as connection:
        seen = workers.list_workers().fetch_all(connection)
    (check,) = [check for check in check_workers(seen, ["broken"], 60) if check.name == "model broken"]
    assert check.message.startswith("its engine does not start: ")
    assert "broken.gguf is not a model that llama.cpp can load" in check.message
    assert str(tmp_path) not in check.message
    assert "Correct the model's files" in check.advice


def test_a_worker_that_stops_gracefully_leaves_no_row(tmp_path: Path, slow_models: Path) -> None:
    process = StackProcess(tmp_path, slow_models)
    process.start()
    try:
        worker = process.find("workers.consumers.main", "batch")
        row = httpx2.get(f"{process.url}/metrics").text
        assert 'millrace_workers{kind="batch"} 1.0' in row
        worker.send_signal(signal.SIGTERM)
        worker.wait(20)
        wait_for(lambda: "no batch worker serves it" in ready(process).text or is_ready(process), "its row is gone", 20)
        wait_for(lambda: is_ready(process), "its replacement is ready", 30)
    finally:
        process.close()
