"""Logging: a full disk stops no process, and repeats are dropped."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from core.logs import DropRepeats, configure_logging
from engine.log import log_stderr

FULL = Path("/dev/full")


def talk() -> None:
    """Log more than any buffer holds."""
    configure_logging()
    for _ in range(100):
        structlog.get_logger().warning("nobody_hears_this", reason="x" * 1000)
        logging.getLogger("celery").warning("x" * 1000)
        log_stderr("x" * 1000)
    sys.stdout.write("still here\n")


def test_a_full_disk_under_the_log_fails_no_caller() -> None:
    with FULL.open("w") as full:
        command = [sys.executable, "-c", f"from {__name__} import talk; talk()"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False, timeout=60)
    assert done.stdout == "still here\n"


def log_before_and_after() -> None:
    """Log in a process that is forked from one which has logged to a terminal."""
    log = structlog.get_logger()
    real, sys.stderr.isatty = sys.stderr.isatty, lambda: True  # type: ignore[method-assign]
    configure_logging()
    log.warning("first")
    sys.stderr.isatty = real  # type: ignore[method-assign]
    configure_logging()
    log.warning("second")


def test_a_logger_follows_the_last_configuration() -> None:
    command = [sys.executable, "-c", f"from {__name__} import log_before_and_after; log_before_and_after()"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    first, second = done.stderr.splitlines()
    assert not first.startswith("{")
    assert json.loads(second)["event"] == "second"


def log_of_a_library() -> None:
    """Log as Celery does, inside a piece of work."""
    configure_logging()
    with structlog.contextvars.bound_contextvars(job="j1"):
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("celery.worker").exception("Task %s failed", "x")


def test_lines_of_libraries_are_json_with_the_ids_of_the_work() -> None:
    command = [sys.executable, "-c", f"from {__name__} import log_of_a_library; log_of_a_library()"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    (line,) = done.stderr.splitlines()
    fields = json.loads(line)
    assert (fields["event"], fields["job"], fields["logger"]) == ("Task x failed", "j1", "celery.worker")
    assert "ValueError: broken" in fields["exception"]


class Lines:
    """A log with a manual clock, whose repeats are dropped."""

    def __init__(self) -> None:
        self.now = 0.0
        self._drop = DropRepeats(clock=lambda: self.now)

    def has(self, event: str, level: str = "warning", **fields: object) -> bool:
        """Log a line; is it written?"""
        try:
            self.last = self._drop(None, level, {"event": event, **fields})
        except structlog.DropEvent:
            return False
        return True


def test_a_loop_that_waits_for_a_service_logs_once_per_change() -> None:
    lines = Lines()
    written = []
    for tick in range(120):  # twice a second
        lines.now = tick / 2
        written.append(lines.has("relay_disconnected", reason="refused" if tick < 100 else "loading"))
    assert [tick for tick, is_written in enumerate(written) if is_written] == [0, 100]
    assert not lines.has("relay_disconnected", reason="refused"), "away for less than a minute"
    lines.now += 61
    assert lines.has("relay_disconnected", reason="refused"), "another outage"
    assert lines.last["repeats"] == 100


def test_an_outage_that_goes_on_is_repeated_every_ten_minutes() -> None:
    lines = Lines()
    written = []
    for second in range(0, 1500, 5):
        lines.now = second
        written.append((second, lines.has("poll_failed", "error", exc_info=ValueError("x"))))
    assert [second for second, is_written in written if is_written] == [0, 600, 1200]


def test_pieces_of_the_same_outage_are_one_line() -> None:
    lines = Lines()
    assert lines.has("database_unavailable", reason="refused", request_id="req_1")
    assert not lines.has("database_unavailable", reason="refused", request_id="req_2")
    assert lines.has("claim_failed", reason="refused", model="a")
    assert lines.has("claim_failed", reason="refused", model="b")
    assert not lines.has("claim_failed", reason="refused", model="b")


@pytest.mark.parametrize(
    ("level", "fields"), [("info", {"reason": "x"}), ("warning", {"shard": "s"})], ids=["an event", "a change"]
)
def test_other_lines_are_never_dropped(level: str, fields: dict[str, str]) -> None:
    lines = Lines()
    assert all(lines.has("shard_lost", level, **fields) for _ in range(3))


def test_the_number_of_lines_that_are_remembered_is_bounded() -> None:
    lines = Lines()
    assert all(lines.has("claim_failed", reason=str(number)) for number in range(1000))
    assert len(lines._drop._seen) <= 256
