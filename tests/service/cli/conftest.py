"""A terminal in an empty folder, with a server to talk to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import Terminal
from tests.support.stack import StackProcess


@pytest.fixture
def terminal(server: StackProcess, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path, server)
