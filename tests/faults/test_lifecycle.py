"""Batches that are cancelled or expire, or lose their input file or their clerk, at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import openai
import psutil
import pytest

from core import ids
from core.failpoints import Point
from core.process.clone import set_parent_death_signal
from tests.faults.load import batch_content, create_batch, start_batch, upload, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack
from tests.support.stack import wait_for
from workers.maintenance.sweeper import _LOCK

pytestmark = pytest.mark.timeout(90)

SOME_TIME = {"max_tokens": 400, "ignore_eos": True}
NUM_LINES = 100


def begun(stack: FaultStack) -> str:
    """Start a batch and wait until some lines are done."""
    batch_id = start_batch(stack, NUM_LINES, **SOME_TIME)
    some = "SELECT 1 FROM jobs WHERE batch_id = :id AND state = 'completed'"
    wait_for(lambda: bool(stack.query(some, id=batch_id)), "some lines are done", 30)
    return batch_id


def results(stack: FaultStack, batch_id: str) -> tuple[int, list[str]]:
    """Return the number of lines with a response, and the error codes of the others."""
    batch = stack.client.batches.retrieve(batch_id)
    texts = [
        stack.client.files.content(file_id).text.splitlines() if file_id else []
        for file_id in (batch.output_file_id, batch.error_file_id)
    ]
    return len(texts[0]), [json.loads(line)["error"]["code"] for line in texts[1]]


def test_an_expired_batch_keeps_its_finished_lines(stack: FaultStack, oracle: Oracle) -> None:
    """F45: the remaining lines fail with `batch_expired`."""
    batch_id = begun(stack)
    stack.execute("UPDATE batches SET expires_at = now() WHERE id = :id", id=batch_id)
    assert wait_batch(stack, batch_id) == "expired"
    answered, codes = results(stack, batch_id)
    assert answered > 0
    assert codes == ["batch_expired"] * (NUM_LINES - answered)
    assert codes
    oracle.check()


def cancel(stack: FaultStack, batch_id: str) -> str:
    """Cancel the batch; return its status, or the code of the refusal."""
    try:
        return str(stack.retry(lambda: stack.client.batches.cancel(batch_id)).status)
    except openai.BadRequestError as error:
        return str(error.code)


def test_a_running_batch_that_is_cancelled_keeps_its_finished_lines(stack: FaultStack, oracle: Oracle) -> None:
    """F46: during its lines; a second cancel changes nothing."""
    batch_id = begun(stack)
    assert cancel(stack, batch_id) == "cancelling"
    assert cancel(stack, batch_id) in ("cancelling", "cancelled")
    assert wait_batch(stack, batch_id) == "cancelled"
    answered, codes = results(stack, batch_id)
    assert answered > 0
    assert codes == ["batch_cancelled"] * (NUM_LINES - answered)
    assert codes
    assert cancel(stack, batch_id) == "cancelled"
    oracle.check()


@pytest.mark.parametrize(
    ("point", "seen", "answer", "end"),
    [
        (Point.PREPARE_COPIED, "validating", "cancelling", "cancelled"),
        (Point.PREPARE_COMMITTED, "in_progress", "cancelling", "cancelled"),
        (Point.FINALIZE_STORED, "finalizing", "cancelling", "cancelled"),
        (Point.FINALIZE_ENDING, "finalizing", "batch_not_cancellable", "completed"),
        (Point.FINALIZE_COMMITTED, "completed", "batch_not_cancellable", "completed"),
    ],
)
def test_a_cancel_that_comes_at(
    point: Point, seen: str, answer: str, end: str, stack: FaultStack, oracle: Oracle
) -> None:
    """F46: the process that works on the batch is delayed there; the batch ends in order, with every line once."""
    file_id = upload(stack, batch_content(NUM_LINES, **SOME_TIME) if seen == "in_progress" else batch_content(6))
    with stack.armed(point, "sleep=2"):
        batch_id = create_batch(stack, file_id)
        wait_for(lambda: stack.hit_by(point) is not None, f"{point} is passed", 20)
        assert stack.client.batches.retrieve(batch_id).status == seen
        assert cancel(stack, batch_id) == answer
    assert wait_batch(stack, batch_id) == end
    oracle.check()


def test_an_input_file_deleted_during_preparation_is_still_read_to_its_end(stack: FaultStack, oracle: Oracle) -> None:
    """F50: the batch completes; then the bytes are deleted."""
    file_id = upload(stack, batch_content(20))
    with stack.armed(Point.PREPARE_COPIED, "sleep=1"):
        batch_id = create_batch(stack, file_id)
        stack.client.files.delete(file_id)
        wait_for(lambda: stack.hit_by(Point.PREPARE_COPIED) is not None, "the lines are read", 20)
        assert stack.files.path(file_id).exists()
    with pytest.raises(openai.NotFoundError):
        stack.client.files.retrieve(file_id)
    assert wait_batch(stack, batch_id) == "completed"
    assert results(stack, batch_id) == (20, [])
    wait_for(lambda: not stack.files.path(file_id).exists(), "the bytes are gone", 20)
    oracle.check()


@contextmanager
def second_clerk(stack: FaultStack) -> Iterator[None]:
    """Start another clerk of the same stack, as on another machine that shares the file store."""
    folder = stack.folder / "second-clerk"
    folder.mkdir()
    environment = {
        **stack.process.environment,
        "MILLRACE_STATE_DIR": str(folder),
        "MILLRACE_MODELS_DIR": str(stack.folder / "models"),
        "MILLRACE_FILES_DIR": str(stack.files.root),
    }
    clerks = "SELECT count(*) FROM workers WHERE kind = 'clerk' AND pid = :pid"
    with (folder / "clerk.log").open("ab") as log:
        command = [sys.executable, "-P", "-m", "workers.consumers.main", "clerk"]
        end = partial(set_parent_death_signal, os.getpid(), signal.SIGTERM)
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=end)
    try:
        wait_for(lambda: stack.query(clerks, pid=process.pid)[0][0] == 1, "the second clerk is ready", 30)
        yield
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def lose_a_batch(stack: FaultStack) -> str:
    """Leave a batch without its ticket, as an api that crashed between the commit and the ticket: only a sweep finds it."""
    file_id, batch_id = upload(stack, batch_content(4)), ids.new_id(ids.BATCH)
    stack.execute(
        "INSERT INTO batches (id, tenant_id, endpoint, input_file_id, completion_window, window_seconds, dispatched_at) "
        "VALUES (:id, 'default', '/v1/chat/completions', :file, '24h', 86400, now() - interval '1 minute')",
        id=batch_id,
        file=file_id,
    )
    return batch_id


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_another_clerk_takes_over_the_sweep(stack: FaultStack, oracle: Oracle, how: str) -> None:
    """F48: during a sweep that holds the lock; the first clerk does no harm when it is resumed.

    The database releases the lock of a clerk that is frozen for 15 s: `tests/service/db/test_connections.py`. Here the test
    ends
    the session.
    """
    with second_clerk(stack):
        with stack.armed(Point.SWEEP_BATCHES, "sleep=1"):
            first = lose_a_batch(stack)
            wait_for(lambda: stack.hit_by(Point.SWEEP_BATCHES) is not None, "a clerk is in its sweep", 20)
        leader = psutil.Process(stack.hit_by(Point.SWEEP_BATCHES))
        leader.kill() if how == "killed" else leader.suspend()
        if how == "frozen":
            stack.query(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = :lock",
                lock=_LOCK,
            )
        second = lose_a_batch(stack)
        try:
            assert [wait_batch(stack, each) for each in (first, second)] == ["completed"] * 2
        finally:
            if how == "frozen":
                leader.resume()
        third = lose_a_batch(stack)
        assert wait_batch(stack, third) == "completed"
    assert wait_batch(stack, lose_a_batch(stack)) == "completed"
    oracle.check()
