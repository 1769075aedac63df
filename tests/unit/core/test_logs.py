"""Logging on a full disk: processes continue."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import structlog

from core.logs import configure_logging
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
