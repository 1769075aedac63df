"""One stack for all fault tests of a folder; each test leaves it whole, and the oracle looks at everything it did."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack


@pytest.fixture(scope="package")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStack]:
    """Started once; take `stack` in a test."""
    with FaultStack(tmp_path_factory.mktemp("faults")) as stack:
        yield stack


@pytest.fixture(scope="package")
def shared_oracle(shared_stack: FaultStack) -> Iterator[Oracle]:
    """Watches the whole package."""
    oracle = Oracle(shared_stack)
    yield oracle
    oracle.close()


@pytest.fixture
def stack(shared_stack: FaultStack) -> Iterator[FaultStack]:
    """The stack, healed behind the test however that ended."""
    shared_stack.heal()
    yield shared_stack
    shared_stack.heal()


@pytest.fixture
def oracle(stack: FaultStack, shared_oracle: Oracle) -> Oracle:
    """To be asked, with `check`, at the end of the test."""
    return shared_oracle
