"""One launcher for each device of a state directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.errors import ConfigError
from workers.launcher.device_lock import lock_device


def test_a_device_has_one_launcher_at_a_time(tmp_path: Path) -> None:
    first = lock_device(tmp_path, "cuda:0")
    other = lock_device(tmp_path, "cuda:1")
    with pytest.raises(ConfigError, match=rf"pid {os.getpid()}\) uses the device cuda:0 .*MILLRACE_STATE_DIR"):
        lock_device(tmp_path, "cuda:0")
    first.close()
    lock_device(tmp_path, "cuda:0").close()
    other.close()


def test_two_state_directories_are_apart(tmp_path: Path) -> None:
    with lock_device(tmp_path / "a", "cpu") as first, lock_device(tmp_path / "b", "cpu") as second:
        assert first.fileno() != second.fileno()
