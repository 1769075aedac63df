"""Rows of worker processes that never ran, for tests of what the api shows of them."""

from __future__ import annotations

from typing import Any

from core.states import EngineState
from db import workers
from db.workers import EngineReport, WorkerReport
from workers.context import Database


def report_engine(
    database: Database,
    model: str,
    state: EngineState,
    *,
    reason: str | None = None,
    warning: str | None = None,
    **place: Any,  # Any: device, memory_bytes, slots, context_size
) -> None:
    """Insert a launcher with one engine in this state, and its consumers where it is ready."""
    engine = EngineReport(model=model, state=state, exit_reason=reason, warning=warning, **place)
    reports = [WorkerReport(id=f"launcher-{model}", kind="launcher", host="box", pid=1, engines=[engine])]
    if state is EngineState.READY:
        tick = EngineReport(model=model, tick_seconds=0)
        reports += [
            WorkerReport(id=f"{kind}-{model}", kind=kind, host="box", pid=1, poll_seconds=0, engines=[tick])
            for kind in ("chat", "batch")
        ]
    with database.begin() as connection:
        for report in reports:
            connection.execute(*workers.report_worker(report))


def report_clerk(database: Database) -> None:
    """Insert a clerk that has just polled."""
    with database.begin() as connection:
        connection.execute(
            *workers.report_worker(WorkerReport(id="clerk", kind="clerk", host="box", pid=1, poll_seconds=0))
        )
