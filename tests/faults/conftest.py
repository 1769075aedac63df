"""One stack for all fault tests of a folder. Each test leaves it intact, and the oracle checks everything it did."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Final

import pytest

from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack

_MOUNT: Final = ["mount", "-t", "tmpfs", "tmpfs", "/mnt"]
_NAMESPACE: Final = ["unshare", "--user", "--map-root-user", "--mount"]


@cache
def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that mounts a file system in a user and mount namespace where the process itself may not mount."""
    if pyfuncitem.get_closest_marker("mount") is None or _succeeds("unshare", "--mount", *_MOUNT):
        return None
    if not _succeeds(*_NAMESPACE, *_MOUNT):
        pytest.skip("mounts and user namespaces are refused here")
    command = [*_NAMESPACE, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=pyfuncitem.config.rootpath, env=environment, capture_output=True, text=True, check=False
    )
    if "1 skipped" in done.stdout:
        pytest.skip("Postgres keeps its data outside the mounted disk, since user namespaces are refused here")
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4_000:]
    return True


@pytest.fixture(scope="package")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStack]:
    """Start the stack once; tests take `stack`."""
    with FaultStack(tmp_path_factory.mktemp("faults")) as stack:
        yield stack


@pytest.fixture(scope="package")
def shared_oracle(shared_stack: FaultStack) -> Iterator[Oracle]:
    """Watch the stack during all tests of the package."""
    oracle = Oracle(shared_stack)
    yield oracle
    oracle.close()


@pytest.fixture
def stack(shared_stack: FaultStack) -> Iterator[FaultStack]:
    """Yield the stack and remove all faults after the test, also after a failure."""
    shared_stack.heal()
    yield shared_stack
    shared_stack.heal()


@pytest.fixture
def oracle(stack: FaultStack, shared_oracle: Oracle) -> Oracle:
    """Return the oracle; tests call `check` at their end."""
    return shared_oracle
