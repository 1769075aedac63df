"""Engine reports: the state of an engine after each event, and the reason that its exit code and last line give."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
import pytest

from core.process.supervisor import SupervisedProcess
from core.states import EngineState
from db.workers import EngineReport
from engine.process.protocol import EngineInfo
from workers.launcher.engines.engine_reports import EngineReports, exit_reason

INFO = EngineInfo(model="m", build="b", context_size=64, slots=4, num_vocab=9, template_hash="h")


def loading(tolerated_exits: int = 1) -> EngineReports:
    """A launcher with one engine that loads."""
    reports = EngineReports("cuda:1", tolerated_exits=tolerated_exits)
    reports.add("m")
    reports.begin_load("m", 500)
    return reports


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        (4, "There is no model file /srv/models/private/a.gguf.", "There is no model file a.gguf."),
        (3, "x" * 1000, "x" * 300),
        (86, "the secret plan", "a decode step hung, and the engine aborted"),
        (88, "the secret plan", "the thread that takes requests ended, and the engine aborted"),
        (-11, "the secret plan", "it was ended by SIGSEGV"),
        (1, "ValueError: the secret plan", "it ended with exit code 1"),
    ],
)
def test_an_exit_reason_has_no_folder_and_no_text_of_a_request(code: int, line: str, words: str) -> None:
    assert exit_reason(code, line) == words


def test_a_supervised_engine_that_dies_is_counted_and_its_message_is_kept(tmp_path: Path) -> None:
    reports = loading()
    code = "import sys; sys.stderr.write('noise\\nThere is no model file /a/b.gguf.\\n'); sys.exit(4)"

    def died(exit_code: int) -> None:
        reports.add_exit("m", exit_code, tmp_path / "log")

    engine = SupervisedProcess("engine-m", [sys.executable, "-c", code], tmp_path / "log", {}, 60, on_exit=died)
    engine.start().wait(20)
    engine.restart_if_exited(time.monotonic())
    engine.restart_if_exited(time.monotonic())
    status = reports.status()
    reason = "There is no model file b.gguf."
    (engine_report,) = status.engines
    assert (engine_report.num_deaths, engine_report.exit_reason, engine_report.state) == (
        1,
        reason,
        EngineState.MISSING,
    )
    assert status.totals == {("engine_deaths", "m"): 1}
    assert engine.child is None, "it waits for its pause before the next start"


def state_after(*events: int | str) -> EngineState | None:
    """The state of an engine after exits (numbers) and replies (`ready`), in a worker that serves."""
    reports = loading(tolerated_exits=2)
    reports.set_held(["m"])
    for event in events:
        if isinstance(event, int):
            reports.add_exit("m", event, Path("/nowhere"))
        else:
            reports.set_ready("m", INFO)
    return reports.status().engines[0].state


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((), EngineState.LOADING),
        (("ready",), EngineState.READY),
        (("ready", -11), EngineState.LOADING),
        (("ready", 86), EngineState.LOADING),  # it hung: the next one loads
        (("ready", -11, 3), EngineState.FAILED),
        (("ready", -11, 4), EngineState.MISSING),
        (("ready", -11, 4, 3), EngineState.FAILED),
        ((3,), EngineState.FAILED),
        ((3, "ready"), EngineState.READY),
        ((-9, -9), EngineState.LOADING),
        ((-9, -9, -9), EngineState.FAILED),
        ((-9, -9, "ready", -9, -9, -9), EngineState.LOADING),
    ],
)
def test_an_engine_that_does_not_start_again_has_failed(events: tuple[int | str, ...], state: EngineState) -> None:
    assert state_after(*events) is state


def test_an_engine_is_loading_until_its_consumers_take_work_of_it() -> None:
    reports = loading()
    changes: list[str] = []
    reports.on_change = lambda: changes.append("changed")
    info = msgspec.structs.replace(INFO, warning="no template")
    reports.set_ready("m", info)
    assert reports.status().engines[0].state is EngineState.LOADING
    reports.set_held(["m"])
    (engine,) = reports.status().engines
    assert engine == EngineReport(
        model="m",
        state=EngineState.READY,
        warning="no template",
        device="cuda:1",
        memory_bytes=500,
        slots=4,
        context_size=64,
    )
    reports.set_ready("m", info)
    reports.set_held(["m"])
    assert changes == ["changed"] * 2


def test_a_model_that_has_left_memory_has_none() -> None:
    reports = loading()
    reports.set_ready("m", INFO)
    reports.set_unloaded("m")
    assert reports.status().engines == [EngineReport(model="m", state=EngineState.UNLOADED)]
    reports.remove("m")
    assert reports.status().engines == []


def test_an_engine_that_is_not_ready_in_time_has_failed_with_a_reason() -> None:
    reports = loading()
    reports.fail("m")
    (engine,) = reports.status().engines
    assert (engine.state, engine.exit_reason) == (EngineState.FAILED, "it was not ready in time")
