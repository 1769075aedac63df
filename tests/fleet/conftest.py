"""One fleet for all tests of this folder. Each test leaves every process running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fleet.fleet import Fleet


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet in which every process is ready."""
    running = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        running.start()
        yield running
    finally:
        running.close()
