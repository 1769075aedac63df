"""A worker on several GPUs of a machine that has none: an inventory of two cards, and models without weights."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from sqlalchemy import select

from core.settings import Settings
from db.tables import Worker as WorkerRow
from engine.config import EngineConfig
from tests.support.devices import CUDA_BUILD, GIB, fake_devices, gpus
from tests.support.processes import command_of
from tests.support.stack import clean_environment, wait_for
from workers.context import Database

pytestmark = pytest.mark.usefixtures("database", "valkey")

MODELS = {
    "everywhere": "",
    "second": "devices: [cuda:1]\n",
    "divided": "devices: [cuda:1, cuda:0]\ntensor_split: [3, 1]\n",
    "elsewhere": "devices: [cuda:7]\n",
}


class Worker:
    """`python -m workers` on all cards of the inventory."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._folder = folder
        models = folder / "models"
        models.mkdir()
        for name, keys in MODELS.items():
            (models / f"{name}.yaml").write_text(f"name: {name}\nbackend: fake\n{keys}")
        environment = {
            "MILLRACE_STATE_DIR": str(settings.state_dir),
            "MILLRACE_MODELS_DIR": str(models),
            "MILLRACE_DRAIN_SECONDS": "1",
            "MILLRACE_ENGINE_RESTART_SECONDS": "0.05",
            "DATABASE_URL": settings.database_url or "",
            "REDIS_URL": settings.redis_url or "",
            **self.set_free_memory(12),
        }
        self.log = folder / "worker.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers"], env=clean_environment() | environment, stdout=log, stderr=log
            )

    def set_free_memory(self, gib: int) -> dict[str, str]:
        """Let each card report this free memory from now on."""
        cards = [{**card, "free_bytes": gib * GIB} for card in gpus(2)]
        return fake_devices(self._folder, gpus=cards, build=CUDA_BUILD)

    def launchers(self) -> list[psutil.Process]:
        return [each for each in psutil.Process(self.process.pid).children() if "--only" in command_of(each)]

    def engines(self) -> list[tuple[EngineConfig, dict[str, str]]]:
        """The configuration and the environment of each engine."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            command = command_of(process)
            if "engine.process.server" in command:
                found.append((msgspec.json.decode(command[-1], type=EngineConfig), process.environ()))
        return found

    def wait_ready(self) -> None:
        wait_for(
            lambda: self.process.poll() is not None or self.log.read_text().count("worker_ready") == 2, "it is ready"
        )
        assert self.process.poll() is None, self.log.read_text()


@pytest.fixture
def worker(settings: Settings, tmp_path: Path) -> Iterator[Worker]:
    running = Worker(settings, tmp_path)
    try:
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        try:
            assert running.process.wait(20) == 0
        finally:
            running.process.kill()


def budgets(database: Database, worker: Worker) -> set[tuple[str, int]]:
    """The device and the budget of each launcher that runs."""
    pids = [process.pid for process in worker.launchers()]
    with database.begin() as connection:
        rows = connection.execute(select(WorkerRow.device, WorkerRow.budget_bytes).where(WorkerRow.pid.in_(pids)))
        return {(row.device, row.budget_bytes) for row in rows}


def test_each_card_has_a_launcher_with_its_models_which_is_restarted_alone(
    worker: Worker, settings: Settings, database: Database
) -> None:
    worker.wait_ready()
    engines = sorted((config.model, environment["CUDA_VISIBLE_DEVICES"]) for config, environment in worker.engines())
    assert engines == [("divided", "1,0"), ("everywhere", "0"), ("everywhere", "1"), ("second", "1")]
    assert [config.tensor_split for config, _ in worker.engines() if config.model == "divided"] == [(0.75, 0.25)]
    assert len({config.endpoint for config, _ in worker.engines()}) == 4
    logs = {path.name for path in (settings.state_dir / "logs").iterdir()}
    for card in ("cuda:0", "cuda:1"):
        assert {f"engine-everywhere@{card}.log", f"chat@{card}.log", f"batch@{card}.log"} <= logs

    victim, other = sorted(worker.launchers(), key=lambda process: process.cmdline()[-1])
    measured = {("cuda:0", int(0.9 * 12 * GIB)), ("cuda:1", int(0.9 * 12 * GIB))}
    wait_for(lambda: budgets(database, worker) == measured, "both have reported their budgets", 10)
    worker.set_free_memory(3)  # the engine of `divided` has the rest, whose part is counted as a guest's
    victim.kill()
    wait_for(lambda: worker.log.read_text().count("worker_ready") == 3, "another launcher is ready")
    assert other.pid in {process.pid for process in worker.launchers()}
    assert len(worker.engines()) == 4
    wait_for(lambda: budgets(database, worker) == measured, "it has the budget that it had", 10)
