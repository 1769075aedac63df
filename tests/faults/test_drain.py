"""SIGTERM to consumers, in whatever state they and their neighbours are: they leave in time, and nothing is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import psutil
import pytest

from tests.faults.load import start_batch, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack, Role
from tests.stack import wait_for

pytestmark = pytest.mark.timeout(90)

DRAIN_SECONDS = 3.0
_CONSUMERS = (Role.CHAT, Role.BATCH, Role.CLERK)
_LONG = {"max_tokens": 2000, "ignore_eos": True}  # 20 s: several times the deadline
_MODEL = "name: fake\nbackend: fake\nslots: 8\nstep_seconds: 0.01\n"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStack]:
    """A stack whose lines take a while."""
    folder = tmp_path_factory.mktemp("drain")
    with FaultStack(folder, model=_MODEL, MILLRACE_DRAIN_SECONDS=str(DRAIN_SECONDS)) as stack:
        yield stack


@pytest.fixture(scope="module")
def oracle(slow: FaultStack) -> Iterator[Oracle]:
    oracle = Oracle(slow)
    yield oracle
    oracle.close()


def in_its_middle(stack: FaultStack, num_lines: int, **more: object) -> str:
    """A batch of which lines run."""
    batch_id = start_batch(stack, num_lines, **more)
    claimed = "SELECT 1 FROM shards WHERE batch_id = :id AND owner IS NOT NULL"
    wait_for(lambda: bool(stack.query(claimed, id=batch_id)), "a worker is at it", 20)
    return batch_id


def seconds_to_leave(*processes: psutil.Process) -> float:
    """From SIGTERM to the end of the last."""
    began = time.monotonic()
    for process in processes:
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=4 * DRAIN_SECONDS)
    assert not alive, "it never leaves"
    return time.monotonic() - began


def cancel(stack: FaultStack, batch_id: str) -> None:
    stack.insist(lambda: stack.client.batches.cancel(batch_id))
    assert wait_batch(stack, batch_id) == "cancelled"


def test_short_lines_that_run_are_finished_and_the_rest_goes_on_at_once(slow: FaultStack, oracle: Oracle) -> None:
    """F3."""
    batch_id = in_its_middle(slow, 40)
    assert seconds_to_leave(slow.find(Role.BATCH)) < DRAIN_SECONDS + 1
    assert not slow.query("SELECT 1 FROM shards WHERE batch_id = :id AND owner IS NOT NULL", id=batch_id)
    assert wait_batch(slow, batch_id) == "completed"
    oracle.check()


def test_a_line_that_takes_longer_than_the_deadline_is_given_back(slow: FaultStack, oracle: Oracle) -> None:
    """F4: its shard is free when the process has gone, and the next one takes it."""
    batch_id = in_its_middle(slow, 8, **_LONG)
    seconds = seconds_to_leave(slow.find(Role.BATCH))
    print(f"left after {seconds:.1f} s")  # noqa: T201
    assert seconds < DRAIN_SECONDS + 1
    again = "SELECT 1 FROM shards WHERE batch_id = :id AND fence = 2 AND owner IS NOT NULL"
    wait_for(lambda: bool(slow.query(again, id=batch_id)), "the next one is at it", 20)
    cancel(slow, batch_id)
    oracle.check()


def test_a_second_signal_does_not_wait_for_lines(slow: FaultStack, oracle: Oracle) -> None:
    """F5: ≤ 2 s, and what ran is given back."""
    batch_id = in_its_middle(slow, 8, **_LONG)
    process = slow.find(Role.BATCH)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "draining" in dict(slow.logs())["batch.log"].splitlines()[-1], "the first signal is heard", 5)
    assert seconds_to_leave(process) < 2
    cancel(slow, batch_id)
    oracle.check()


@pytest.mark.parametrize("neighbour", ["valkey frozen", "postgres down", "engine frozen"])
def test_consumers_leave_in_time_also_when_a_neighbour_does_not_answer(
    neighbour: str, slow: FaultStack, oracle: Oracle
) -> None:
    """F6, F7, and the engine's: all three kinds of consumer at once, a batch in its middle."""
    batch_id = in_its_middle(slow, 24)
    harm: AbstractContextManager[None] = nullcontext()
    match neighbour:
        case "valkey frozen":
            harm = slow.frozen(Role.VALKEY)
        case "postgres down":
            harm = slow.without(Role.POSTGRES)
        case _:
            harm = slow.frozen(Role.ENGINE)
    processes = [slow.find(role) for role in _CONSUMERS]
    with harm:
        seconds = seconds_to_leave(*processes)
    print(f"{neighbour}: left after {seconds:.1f} s")  # noqa: T201
    assert seconds < DRAIN_SECONDS + 1
    assert wait_batch(slow, batch_id) == "completed"
    oracle.check()
