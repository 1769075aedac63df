"""F1 on one machine, where a lease lasts for an hour: the successor of a dead consumer takes its work at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.load import new_prompt, start_batch, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack, Role
from tests.support.stack import wait_for

_LEASE_SECONDS = 3600
_MODEL = "name: fake\nbackend: fake\nslots: 8\nstep_seconds: 0.01\n"


@pytest.fixture(scope="module")
def long_lease_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStack]:
    """A stack with leases so long that no test can wait for their end."""
    settings = {"MILLRACE_LEASE_SECONDS": str(_LEASE_SECONDS), "MILLRACE_HEARTBEAT_SECONDS": "1"}
    with FaultStack(tmp_path_factory.mktemp("long-lease"), model=_MODEL, **settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def long_lease_oracle(long_lease_stack: FaultStack) -> Iterator[Oracle]:
    oracle = Oracle(long_lease_stack)
    yield oracle
    oracle.close()


@pytest.mark.parametrize("role", [Role.BATCH, Role.WORKER])
def test_shards_of_a_dead_consumer_are_taken_over_before_their_leases_expire(
    long_lease_stack: FaultStack, long_lease_oracle: Oracle, role: Role
) -> None:
    batch_id = start_batch(long_lease_stack, 40)
    wait_for(
        lambda: bool(long_lease_stack.query("SELECT 1 FROM shards WHERE lines_completed > 0 AND state = 'running'")),
        "the work runs",
    )
    long_lease_stack.kill(role)
    assert wait_batch(long_lease_stack, batch_id) == "completed"
    assert long_lease_stack.query("SELECT max(attempt) FROM shards WHERE batch_id = :id", id=batch_id) == [(2,)]
    long_lease_oracle.check()


def test_a_chat_of_a_dead_consumer_continues_in_the_next_one(
    long_lease_stack: FaultStack, long_lease_oracle: Oracle
) -> None:
    with long_lease_stack.http(timeout=60) as http:
        body = {"model": "fake", "input": new_prompt(), "background": True, "max_output_tokens": 400}
        made = http.post("/v1/responses", json=body).json()
        wait_for(
            lambda: bool(long_lease_stack.query("SELECT 1 FROM jobs WHERE batch_id IS NULL AND state = 'running'")),
            "the work runs",
        )
        long_lease_stack.kill(Role.CHAT)
        wait_for(
            lambda: http.get(f"/v1/responses/{made['id']}").json()["status"] == "completed",
            "the response is completed",
            60,
        )
    long_lease_oracle.check()
