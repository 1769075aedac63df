"""Processes that get a signal to stop in any state, and processes that freeze and resume."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

import psutil
import pytest

from tests.faults.load import Chats, start_batch, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.second_worker import second_worker
from tests.faults.stack import LEASE_SECONDS, QUICK, FaultStack, Role
from tests.support.stack import wait_for

DRAIN_SECONDS = float(QUICK["MILLRACE_DRAIN_SECONDS"])
BUSY_SECONDS = 4.0  # one second is promised; the machine that runs the tests has other work too
LONG = {"max_tokens": 3900, "ignore_eos": True}  # longer than the deadline

State = Callable[[FaultStack], AbstractContextManager[object]]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def stop(stack: FaultStack, role: Role, *numbers: signal.Signals) -> float:
    """Send the signals; return the seconds until the process has ended."""
    process = stack.find(role)
    began = time.monotonic()
    for number in numbers:
        with suppress(psutil.NoSuchProcess):  # one whose lines have not begun may end before the second signal
            process.send_signal(number)
        time.sleep(0.1 if len(numbers) > 1 else 0)  # two signals at the same moment are delivered as one
    wait_for(lambda: is_gone(process), f"{role} is gone", DRAIN_SECONDS + 20)
    return time.monotonic() - began


STATES: dict[str, State] = {
    "nothing else wrong": lambda _: nullcontext(),
    "redis frozen": lambda stack: stack.frozen(Role.VALKEY),
    "postgres down": lambda stack: stack.without(Role.POSTGRES, signal.SIGQUIT),
    "engine hung": lambda stack: stack.frozen(Role.ENGINE),
}


@pytest.mark.parametrize(
    ("state", "load"),
    [
        *((state, load) for state in STATES for load in ("idle", "long lines")),
        ("nothing else wrong", "short lines"),  # with a fault too, long lines are the harder case
    ],
)
def test_a_worker_stops_within_its_deadline(stack: FaultStack, oracle: Oracle, state: str, load: str) -> None:
    """F3, F4, F6, F7: exit ≤ drain + 1 s; the next worker answers what was released, and what could not be released."""
    batch_id = None
    if load != "idle":
        batch_id = start_batch(stack, 40 if load == "short lines" else 4, **({} if load == "short lines" else LONG))
        wait_for(lambda: bool(stack.query("SELECT 1 FROM shards WHERE state = 'running'")), "the batch runs")
    with STATES[state](stack):
        seconds = stop(stack, Role.WORKER, signal.SIGTERM)
    print(f"worker, {state}, {load}: {seconds:.1f} s")

    assert seconds <= DRAIN_SECONDS + BUSY_SECONDS
    stack.pid(Role.BATCH)
    if batch_id is not None:
        assert wait_batch(stack, batch_id, timeout_seconds=120) == "completed"
    oracle.check()


def test_a_worker_that_is_still_starting_stops_too(stack: FaultStack, oracle: Oracle) -> None:
    """F6: its consumers wait for a broker that is frozen."""
    old = stack.pid(Role.BATCH)
    with stack.frozen(Role.VALKEY):
        stack.kill(Role.WORKER)
        wait_for(lambda: stack.find(Role.BATCH).pid != old, "the next consumer starts")
        assert stop(stack, Role.WORKER, signal.SIGTERM) <= DRAIN_SECONDS + BUSY_SECONDS
    stack.pid(Role.BATCH)
    assert wait_batch(stack, start_batch(stack, 4)) == "completed"
    oracle.check()


@pytest.mark.parametrize("role", [Role.API, Role.CLERK])
@pytest.mark.parametrize("state", ["nothing else wrong", "redis frozen", "postgres down"])
def test_an_api_and_a_clerk_stop_within_their_deadline(
    stack: FaultStack, oracle: Oracle, state: str, role: Role
) -> None:
    with Chats(stack) as chats:
        wait_for(lambda: chats.ends["answered"] > 2, "chats are answered")
        with STATES[state](stack):
            seconds = stop(stack, role, signal.SIGTERM)
        print(f"{role}, {state}: {seconds:.1f} s")
        assert seconds <= DRAIN_SECONDS + BUSY_SECONDS
        answered = chats.ends["answered"]
        wait_for(lambda: chats.ends["answered"] > answered + 2, "chats are answered again")
    oracle.check()


def test_a_second_signal_stops_a_worker_at_once(stack: FaultStack, oracle: Oracle) -> None:
    """F5: running work is released at once."""
    batch_id = start_batch(stack, 4, **LONG)
    wait_for(lambda: bool(stack.query("SELECT 1 FROM shards WHERE state = 'running'")), "the batch runs")
    seconds = stop(stack, Role.BATCH, signal.SIGTERM, signal.SIGTERM)

    assert seconds <= 2
    assert wait_batch(stack, batch_id, timeout_seconds=120) == "completed"
    oracle.check()


def test_a_worker_frozen_for_longer_than_its_lease_writes_nothing_afterwards(stack: FaultStack, oracle: Oracle) -> None:
    """F8: its shards are taken over; after it resumes, its fence is out of date."""
    with second_worker(stack):
        batch_id = start_batch(stack, 60)
        wait_for(lambda: bool(stack.query("SELECT 1 FROM shards WHERE lines_completed > 0")), "the batch has begun")
        with stack.frozen(Role.BATCH):
            assert wait_batch(stack, batch_id, timeout_seconds=20 + 5 * LEASE_SECONDS) == "completed"
        later = start_batch(stack, 10)
        assert wait_batch(stack, later) == "completed"
    oracle.check()


def test_a_stack_resumes_after_all_its_processes_were_killed(stack: FaultStack, oracle: Oracle) -> None:
    """F52: without a manual step."""
    batch_id = start_batch(stack, 60)
    wait_for(lambda: bool(stack.query("SELECT 1 FROM shards WHERE lines_completed > 0")), "the batch has begun")
    processes = stack.process.descendants()
    stack.process.kill()
    for process in processes:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for role in (Role.VALKEY, Role.POSTGRES):
        with stack.without(role):
            pass
    stack.start_again()
    assert wait_batch(stack, batch_id, timeout_seconds=90) == "completed"
    oracle.check()
