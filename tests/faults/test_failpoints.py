"""A process dies or fails at every failpoint (commit, publish, rename, acknowledge): nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from core.failpoints import Point
from tests.faults.load import check_everyday
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack, Role
from tests.faults.stages import Stage, passes_of
from tests.support.receiver import Receiver
from tests.support.stack import wait_for

pytestmark = pytest.mark.timeout(90)

_PASSED_BY_ANOTHER_PROCESS = (Point.RETENTION_ORPHAN,)  # its stage starts another clerk

# Passed by a thread that lives as long as its process: it must survive unexpected exceptions.
_THREADS = ("publish", "leases", "sweep", "retention", "webhooks")


def _cases() -> Iterator[Any]:
    for point in Point:
        for role, stage in passes_of(point):
            for action in ("kill", "raise"):
                if (action, role) == ("raise", Role.WORKER):
                    continue  # an exception ends the launcher and its children, as a kill does
                yield pytest.param(point, action, role, stage, id=f"{point}-{action}-{role}")


@pytest.fixture(scope="module")
def receiver(shared_stack: FaultStack) -> Iterator[Receiver]:
    """A receiver that gets the final event of every batch."""
    with Receiver() as receiver:
        events = ["batch.completed", "batch.failed", "batch.cancelled"]
        hook = shared_stack.client.webhooks.create(event_types=events, name="faults", url=receiver.url)  # type: ignore[arg-type]
        yield receiver
        shared_stack.retry(lambda: shared_stack.client.webhooks.delete(hook.id))


@pytest.mark.parametrize(("point", "action", "role", "stage"), list(_cases()))
def test_nothing_is_lost_or_doubled_when_a_process_ends_at(
    point: Point, action: str, role: Role, stage: Stage, stack: FaultStack, oracle: Oracle, receiver: Receiver
) -> None:
    old_pid = stack.pid(role)
    run_armed(stack, stage, point, action)
    if point not in _PASSED_BY_ANOTHER_PROCESS:
        assert stack.hit_by(point) == old_pid
    if action == "kill":
        wait_for(lambda: stack.find(role).pid != old_pid, f"another {role}", 15)
    wait_for(lambda: are_webhooks_delivered(stack), "every event is delivered", 30)
    check_everyday(stack)
    oracle.check()
    if action == "raise" and point.partition(".")[0] in _THREADS:
        check_passes_again(stack, stage, point, role)
        wait_for(lambda: are_webhooks_delivered(stack), "every event is delivered", 30)
    events = {event.body for event in receiver.received}
    for (batch_id,) in stack.query("SELECT id FROM batches WHERE created_at > (SELECT max(created_at) FROM webhooks)"):
        assert any(batch_id in body for body in events), f"no webhook reported the end of {batch_id}"


def run_armed(stack: FaultStack, stage: Stage, point: Point, action: str) -> None:
    """Run a stage with the point armed from its `yield` on, and check that the point is passed."""
    steps = stage(stack)
    next(steps)
    with stack.armed(point, action):
        for _ in steps:
            raise AssertionError("a stage must yield once")
        wait_for(lambda: stack.hit_by(point) is not None, f"{point} is passed", 15)


def check_passes_again(stack: FaultStack, stage: Stage, point: Point, role: Role) -> None:
    """Check that the process that failed passes the point again; replace the process if it does not, for later tests."""
    try:
        run_armed(stack, stage, point, "sleep=0")
    except AssertionError:
        stack.restart(role)
        raise


def are_webhooks_delivered(stack: FaultStack) -> bool:
    """Is every event delivered? Makes pending deliveries due at once."""
    stack.execute("UPDATE webhook_deliveries SET due_at = now() WHERE finished_at IS NULL AND due_at > now()")
    return not stack.query("SELECT 1 FROM webhook_deliveries WHERE finished_at IS NULL")
