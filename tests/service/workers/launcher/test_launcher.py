"""A worker process whose children are killed, do not start, or do not answer."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from core.settings import Settings
from tests.support.processes import command_of
from tests.support.stack import clean_environment, wait_for
from workers.context import Database

pytestmark = pytest.mark.usefixtures("database", "valkey")


class Launcher:
    """`python -m workers`."""

    def __init__(self, settings: Settings, folder: Path, **environment: str) -> None:
        self.log = folder / "worker.log"
        values = {
            "MILLRACE_STATE_DIR": str(settings.state_dir),
            "MILLRACE_MODELS_DIR": str(settings.models_dir),
            "MILLRACE_DRAIN_SECONDS": "1",
            "DATABASE_URL": settings.database_url or "",
            "REDIS_URL": settings.redis_url or "",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers", "--device", "cpu"],
                env={**clean_environment(), **values, **environment},
                stdout=log,
                stderr=log,
            )

    def child(self, *words: str) -> psutil.Process:
        """Wait for the child whose command has these words."""
        wait_for(lambda: self._find(*words) is not None, f"a process with {words}", 30)
        found = self._find(*words)
        assert found is not None
        return found

    def wait_said(self, words: str) -> None:
        wait_for(lambda: words in self.log.read_text() or self.process.poll() is not None, f"it says {words!r}", 90)
        assert words in self.log.read_text(), self.log.read_text()

    def _find(self, *words: str) -> psutil.Process | None:
        for process in psutil.Process(self.process.pid).children():
            command = command_of(process)  # empty if the process has ended
            if all(word in command for word in words):
                return process
        return None


@contextmanager
def launched(settings: Settings, folder: Path, **environment: str) -> Iterator[Launcher]:
    launcher = Launcher(settings, folder, **environment)
    try:
        yield launcher
    finally:
        launcher.process.send_signal(signal.SIGTERM)
        try:
            launcher.process.wait(20)
        finally:
            launcher.process.kill()


def test_children_that_are_killed_while_they_start_are_started_again(settings: Settings, tmp_path: Path) -> None:
    """Kill a loading engine, a consumer, and an engine that its consumers still wait for."""
    with launched(settings, tmp_path) as launcher:
        killed = []
        for words in (("engine.process.server",), ("workers.consumers.main", "chat"), ("engine.process.server",)):
            victim = launcher.child(*words)
            victim.kill()
            killed.append(victim.pid)
        launcher.wait_said("worker_ready")
        assert (
            len(
                {
                    *killed,
                    launcher.child("engine.process.server").pid,
                    launcher.child("workers.consumers.main", "chat").pid,
                }
            )
            == 5
        )
        assert launcher.log.read_text().count("child_exited") == 3


def test_a_consumer_that_exits_with_an_error_at_its_start_ends_the_worker(settings: Settings, tmp_path: Path) -> None:
    wrong_url = f"{settings.redis_url}?db=first"  # which the launcher has no client for
    with launched(settings, tmp_path, REDIS_URL=wrong_url) as launcher:
        assert launcher.process.wait(60) == 1
        said = launcher.log.read_text()
    assert re.search(r"millrace worker: (chat|batch) ended with exit code 1.*in connection URL", said, re.DOTALL)


def test_an_engine_that_does_not_answer_is_replaced(settings: Settings, tmp_path: Path) -> None:
    with launched(settings, tmp_path, MILLRACE_ENGINE_HANG_SECONDS="0.8") as launcher:
        launcher.wait_said("worker_ready")
        frozen = launcher.child("engine.process.server")
        frozen.suspend()
        launcher.wait_said("engine_unresponsive")
        wait_for(lambda: launcher.child("engine.process.server").pid != frozen.pid, "another engine", 20)
        assert launcher.process.poll() is None


def test_a_model_whose_engine_is_killed_at_every_start_is_given_up(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    with launched(settings, tmp_path, MILLRACE_ENGINE_RESTART_SECONDS="0.01") as launcher:
        killed: set[int] = set()

        def kill_another() -> bool:
            if (process := launcher._find("engine.process.server")) is not None and process.pid not in killed:
                process.kill()
                killed.add(process.pid)
            return launcher.process.poll() is not None

        wait_for(kill_another, "it gives up", 60)
        assert launcher.process.poll() == 1
        assert len(killed) == settings.line_attempts + 1
        assert "The model fake did not load. engine-fake ended with exit code -9" in launcher.log.read_text()


def test_pinned_models_that_do_not_fit_stop_the_start(settings: Settings, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in "abc":
        (models / f"{name}.yaml").write_text(f"name: {name}\nbackend: fake\npinned: true\nmemory_bytes: 100MiB\n")
    environment = {"MILLRACE_MODELS_DIR": str(models), "MILLRACE_DEVICE_MEMORY": "200MiB"}
    with launched(settings, tmp_path, **environment) as launcher:
        assert launcher.process.wait(60) == 1
        said = launcher.log.read_text()
    assert "The pinned models need 300 MiB, and cpu has 200 MiB for models. Remove `pinned` from c" in said


def test_models_of_which_none_is_in_memory_are_a_worker_that_is_ready(settings: Settings, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "lazy.yaml").write_text("name: lazy\nbackend: fake\nload: lazy\n")
    with launched(settings, tmp_path, MILLRACE_MODELS_DIR=str(models)) as launcher:
        launcher.wait_said("worker_ready")
        assert launcher._find("engine.process.server") is None


def test_a_broken_model_file_does_not_keep_a_worker_from_serving_the_others(settings: Settings, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "broken.yaml").write_text("name: broken\nno_such_key: 1\n")
    with launched(settings, tmp_path, MILLRACE_MODELS_DIR=str(models)) as launcher:
        assert launcher.process.wait(60) == 1
        assert "there is no key 'no_such_key'" in launcher.log.read_text()
    (models / "fake.yaml").write_text("name: fake\nbackend: fake\n")
    with launched(settings, tmp_path, MILLRACE_MODELS_DIR=str(models)) as launcher:
        launcher.wait_said("worker_ready")
