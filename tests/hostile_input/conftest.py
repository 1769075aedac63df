"""A stack for bad input, and a check after each test that the stack works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile_input.target import Target


@pytest.fixture(scope="package")
def session_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Start the stack once."""
    target = Target(
        tmp_path_factory.mktemp("inputs"),
        MILLRACE_WEBHOOK_HOSTS="*",
        MILLRACE_HEAD_SECONDS="2",
        MILLRACE_BODY_PAUSE_SECONDS="3",
    )
    yield target
    target.close()


@pytest.fixture
def target(session_target: Target) -> Iterator[Target]:
    """Yield the stack; after the test it must answer others, with the same processes as before."""
    before = set(session_target.programs())
    yield session_target
    session_target.check_alive()
    assert set(session_target.programs()) == before, "a process was restarted by the test"
