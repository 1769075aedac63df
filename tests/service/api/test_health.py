"""`/readyz`, `/healthz` and `/metrics`."""

from __future__ import annotations

from socket import gethostname

import httpx2

from core.settings import Settings
from db import quarantine, workers
from db.workers import EngineReport, WorkerReport
from tests.support.inside import inside
from workers.context import Database


async def test_unexplained_engine_crashes_make_a_model_unready(settings: Settings, database: Database) -> None:
    with database.begin() as connection:
        for kind in ("chat", "batch"):
            report = WorkerReport(
                id=kind, kind=kind, host="box", pid=1, engines=[EngineReport(model="fake", tick_seconds=0)]
            )
            connection.execute(*workers.report_worker(report))
        for _ in range(settings.engine_crashes + 1):
            connection.execute(quarantine.add_engine_crash("fake", "box/cpu", -11))
    async with inside(settings) as http:
        checks = (await http.get("/readyz")).json()["checks"]
    assert checks["model fake"].startswith(f"is degraded: its engine ended {settings.engine_crashes + 1} times")


def test_a_started_stack_is_ready(http: httpx2.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert ready.status_code == 200, ready.text
    names = ["database", "schema", "clerk", "model fake", "model slow", "queue", "file store"]
    assert ready.json() == {"status": "ok", "checks": dict.fromkeys(names, "ok"), "advice": {}}


def test_metrics_include_processes_without_a_port(http: httpx2.Client) -> None:
    text = http.get("/metrics").text
    for line in (
        'millrace_workers{kind="chat"} 1.0',
        'millrace_workers{kind="clerk"} 1.0',
        'millrace_workers{kind="launcher"} 1.0',
        'millrace_model_ready{model="slow"} 1.0',
    ):
        assert line in text.splitlines()
    for name in ('millrace_oldest_waiting_seconds{class="batch"} ', "millrace_leases_lost_total "):
        assert f"\n{name}" in text, "its value is that of the tests before"
    place = f'device="cpu",host="{gethostname()}"'
    for labels in (f'model_memory_bytes{{{place},model="slow"}}', f'device_memory_bytes{{{place},memory="free"}}'):
        assert f"\nmillrace_{labels} " in text
    for name in ("slots", "running", "kv_total_tokens"):
        assert f'\nmillrace_model_{name}{{model="slow"}} ' in text
    for labels in (
        'model_waiting{class="chat",model="slow"}',
        'model_oldest_waiting_seconds{class="batch",model="slow"}',
    ):
        assert f"\nmillrace_{labels} " in text
    assert 'millrace_disk_free_bytes{place="files"}' in text
    assert "# TYPE millrace_engine_deaths_total counter" in text
