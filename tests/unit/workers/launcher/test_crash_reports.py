"""Crash reports: the reason that an engine's exit code and last line give."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from core.process.supervisor import SupervisedProcess
from db.workers import EngineReport
from workers.launcher.crash_reports import CrashReports, exit_reason


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        (3, "There is no model file /srv/models/private/a.gguf.", "There is no model file a.gguf."),
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
    reports = CrashReports(["m"])
    code = "import sys; sys.stderr.write('noise\\nThere is no model file /a/b.gguf.\\n'); sys.exit(3)"

    def died(exit_code: int) -> None:
        reports.add("m", exit_code, tmp_path / "log")

    engine = SupervisedProcess("engine-m", [sys.executable, "-c", code], tmp_path / "log", {}, 60, on_exit=died)
    engine.start().wait(20)
    engine.restart_if_exited(time.monotonic())
    engine.restart_if_exited(time.monotonic())
    status = reports.status()
    assert status.engines == [EngineReport(model="m", num_deaths=1, exit_reason="There is no model file b.gguf.")]
    assert status.totals == {("engine_deaths", "m"): 1}
    assert engine.child is None, "it waits for its pause before the next start"
