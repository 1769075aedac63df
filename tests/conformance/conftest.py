"""Prints the table backend × behaviour after a run."""

from __future__ import annotations

import pytest

from tests.conformance.backends import BACKENDS
from tests.conformance.table import RESULTS, measured, render


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the results of this run, if there are any."""
    if RESULTS:
        terminalreporter.section("conformance")
        terminalreporter.write(render(BACKENDS, measured))
