"""The address of a worker's metrics, and the way of a consumer's numbers to it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.devices.inventory import TEST_VARIABLE, read_inventory
from core.errors import ConfigError
from core.process.resource_use import OwnProcess, resource_use
from core.settings import load_settings
from core.states import EngineState
from db.workers import DeviceReport, EngineActivity, EngineReport
from tests.support.devices import fake_devices, gpus
from workers.heartbeat import Status
from workers.launcher.metrics import LauncherMetrics
from workers.metrics.families import clerk_exposition
from workers.metrics.server import CONTENT_TYPE, MetricsServer, open_metrics_server
from workers.metrics.snapshots import SnapshotSocket, read_snapshot, snapshot_socket
from workers.runtime.clerk_metrics import TASK_SECONDS
from workers.runtime.recorder import Metric, Recorder
from workers.runtime.request_metrics import REQUESTS

COUNT = Metric("count", "A count.", ("model",))


def values(text: bytes) -> dict[str, float]:
    """The samples by name and the values of their labels, in the order of the names of these."""
    families = text_string_to_metric_families(text.decode())
    return {
        sample.name + "".join(f",{value}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_are_at_one_path_of_a_free_port() -> None:
    server = MetricsServer("127.0.0.1", 0, lambda: b"one 1\n")
    server.start()
    answer = httpx2.get(server.url)
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, "one 1\n", CONTENT_TYPE)
    head = httpx2.head(server.url)
    assert (head.text, head.headers["content-length"]) == ("", "6")
    root = server.url.removesuffix("/metrics")
    assert httpx2.get(f"{root}/").status_code == 404
    assert httpx2.post(server.url).status_code == 501


def test_an_error_while_metrics_are_read_is_a_500_without_its_text() -> None:
    def fail() -> bytes:
        raise ValueError("private")

    server = MetricsServer("127.0.0.1", 0, fail)
    server.start()
    answer = httpx2.get(server.url)
    assert answer.status_code == 500
    assert "private" not in answer.text


def test_a_port_in_use_is_refused_with_the_setting_to_change() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="another port with MILLRACE_METRICS_PORT"):
            MetricsServer("127.0.0.1", taken.getsockname()[1], lambda: b"")


def test_the_second_device_of_a_worker_has_the_next_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = load_settings(metrics_port=taken.getsockname()[1] - 1)
        with pytest.raises(ConfigError, match=f":{taken.getsockname()[1]}: "):
            open_metrics_server(settings, bytes, offset=1)


def test_a_launcher_reads_the_numbers_of_its_consumers(tmp_path: Path) -> None:
    recorder, path = Recorder(), snapshot_socket(tmp_path / "l-x.sock", "chat")
    SnapshotSocket(path, recorder.snapshot).start()
    recorder.add(COUNT, ("m",), 7)
    assert read_snapshot(path) == recorder.snapshot()
    assert read_snapshot(path) == recorder.snapshot(), "as often as it is asked"


def test_a_consumer_that_does_not_answer_has_no_numbers(tmp_path: Path) -> None:
    assert read_snapshot(tmp_path / "none") == {}
    path = tmp_path / "broken"
    with socket.socket(socket.AF_UNIX) as broken:
        broken.bind(str(path))
        assert read_snapshot(path) == {}


def test_a_consumer_takes_the_place_of_the_socket_of_the_one_before(tmp_path: Path) -> None:
    path = snapshot_socket(tmp_path / "l-x.sock", "batch")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    SnapshotSocket(path, dict).start()
    assert read_snapshot(path) == {}


def test_a_launcher_shows_its_device_its_engines_and_its_consumers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gpu,) = gpus(1)
    environment = fake_devices(tmp_path, gpus=[{**gpu, "utilization": 0.75}])
    monkeypatch.setenv(TEST_VARIABLE, environment[TEST_VARIABLE])
    device = next(each for each in read_inventory().devices if each.name == "cuda:0")
    activity = EngineActivity(num_running=3, kv_tokens=40, kv_total_tokens=100)
    engines = [
        EngineReport(model="m", state=EngineState.READY, slots=4, activity=activity),
        EngineReport(model="absent", state=EngineState.UNLOADED),
    ]
    status = Status(
        engines=engines,
        device=DeviceReport(device="cuda:0", total_bytes=100, free_bytes=30),
        totals={("prompt_tokens", "m"): 11},
    )
    recorder, path = Recorder(), snapshot_socket(tmp_path / "l-x.sock", "chat")
    recorder.add(REQUESTS, ("m", "chat", "completed"), 2)
    SnapshotSocket(path, recorder.snapshot).start()
    metrics = LauncherMetrics(
        device, lambda: status, lambda: [OwnProcess("launcher", os.getpid())], [path, tmp_path / "of no process"]
    )
    found = values(metrics.format())
    expected = {
        "millrace_device_used_bytes,Test card,cuda:0": 70,
        "millrace_device_utilization_ratio,Test card,cuda:0": 0.75,
        "millrace_engine_ready,cuda:0,m": 1,
        "millrace_engine_ready,cuda:0,absent": 0,
        "millrace_engine_slots,cuda:0,m": 4,
        "millrace_engine_running,cuda:0,m": 3,
        "millrace_engine_kv_total_tokens,cuda:0,m": 100,
        "millrace_engine_prompt_tokens_total,cuda:0,m": 11,
        "millrace_requests_total,chat,m,completed": 2,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["millrace_process_resident_memory_bytes,,launcher"] > 1 << 20


def test_histograms_are_cumulative_in_prometheus() -> None:
    recorder = Recorder()
    for seconds in (0.02, 0.02, 400.0):
        recorder.observe(TASK_SECONDS, ("prepare",), seconds)
    found = values(clerk_exposition(recorder.snapshot()))
    name = "millrace_clerk_task_seconds"
    assert found[f"{name}_bucket,0.025,prepare"] == found[f"{name}_bucket,300.0,prepare"] == 2
    assert found[f"{name}_bucket,+Inf,prepare"] == found[f"{name}_count,prepare"] == 3
    assert found[f"{name}_sum,prepare"] == pytest.approx(400.04)


def test_the_use_of_a_process_is_that_of_the_system(tmp_path: Path) -> None:
    own = resource_use(os.getpid())
    assert own is not None
    assert own.cpu_seconds == pytest.approx(sum(os.times()[:2]), abs=0.5)
    folder = tmp_path / "7"
    folder.mkdir()
    fields = " ".join(["S", *["0"] * 10, "100", "50", *["0"] * 8, "3"])
    (folder / "stat").write_text(f"7 (a ) name) {fields} 0 0\n")
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    use = resource_use(7, tmp_path)
    assert use is not None
    assert (use.cpu_seconds, use.resident_bytes) == (150 / ticks, 3 * page)
    assert resource_use(8, tmp_path) is None, "it has ended"
