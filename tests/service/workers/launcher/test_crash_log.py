"""Crash log: crashes of engines in the database."""

from __future__ import annotations

from sqlalchemy import select

from db.tables import EngineCrash
from tests.support.stack import wait_for
from workers.context import Database
from workers.launcher.engines.crash_log import CrashLog


def test_a_crash_is_written_by_its_own_thread_and_unexplained_crashes_are_counted(database: Database) -> None:
    counted: list[tuple[str, int]] = []
    crashes = CrashLog(database.engine, "host/cpu", lambda model, count: counted.append((model, count)))
    crashes.start()
    for code in (-11, -6, 86):
        crashes.add("fake", code, f"code {code}")
    wait_for(lambda: len(counted) == 3, "all are written")
    assert counted == [("fake", 1), ("fake", 2), ("fake", 3)]
    with database.begin() as connection:
        rows = connection.execute(
            select(EngineCrash.worker, EngineCrash.exit_code, EngineCrash.reason).order_by(EngineCrash.id)
        ).all()
    assert rows == [("host/cpu", code, f"code {code}") for code in (-11, -6, 86)]
