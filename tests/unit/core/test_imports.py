"""Imports of processes that start often."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("process", ["api.__main__", "workers.launcher.launcher", "workers.consumers.main"])
def test_a_process_that_only_checks_the_schema_never_loads_alembic(process: str) -> None:
    check = f"import sys, {process}; sys.exit('alembic' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
