"""Crash log: crashes of engines in the database, and the restart pause that they cause."""

from __future__ import annotations

from sqlalchemy import select

from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.models.models_folder import load_models
from core.settings import Settings
from db.tables import EngineCrash
from tests.support.stack import wait_for
from workers.context import Database
from workers.launcher.crash_log import CrashLog
from workers.launcher.launcher import WorkerLauncher


def test_a_crash_is_written_by_its_own_thread_and_unexplained_crashes_are_counted(database: Database) -> None:
    counted: list[tuple[str, int]] = []
    crashes = CrashLog(database.engine, "host/cpu", lambda model, count: counted.append((model, count)))
    crashes.start()
    for code in (-11, -6, 86):
        crashes.add("fake", code)
    wait_for(lambda: len(counted) == 3, "all are written")
    assert counted == [("fake", 1), ("fake", 2), ("fake", 3)]
    with database.begin() as connection:
        rows = connection.execute(select(EngineCrash.worker, EngineCrash.exit_code).order_by(EngineCrash.id)).all()
    assert rows == [("host/cpu", -11), ("host/cpu", -6), ("host/cpu", 86)]


def test_an_engine_with_many_unexplained_crashes_is_restarted_seldom(settings: Settings, database: Database) -> None:
    model = load_models(settings.models_dir).get("fake")
    assert model is not None
    launcher = WorkerLauncher(settings, [model], Device(name="cpu", kind=DeviceKind.CPU))
    engine = launcher._engines["fake"]
    launcher._on_crash_count("fake", settings.line_attempts)
    assert engine.pause_seconds() == settings.engine_restart_seconds
    launcher._on_crash_count("fake", settings.engine_crashes + 1)
    assert engine.pause_seconds() == 30
    launcher._on_crash_count("fake", 0)
    assert engine.pause_seconds() == settings.engine_restart_seconds
