"""A stack for bad input, and the proof after each test that it took no harm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile_input.target import Target


@pytest.fixture(scope="package")
def session_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Started once."""
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
    """The stack; after the test it must answer others, with the same processes as before."""
    before = set(session_target.programs())
    yield session_target
    session_target.check_alive()
    assert set(session_target.programs()) == before, "a process died of it"
