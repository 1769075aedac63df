"""SIGKILL in the middle of a batch: every line is answered exactly once. `tests/faults` has more cases."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

NUM_LINES = 240


def kill_worker(stack: StackProcess) -> None:
    stack.find("workers.consumers.main", "batch").kill()


def kill_everything(stack: StackProcess) -> None:
    processes = stack.descendants()
    stack.kill()
    psutil.wait_procs(processes, timeout=10)
    stack.start()


@pytest.mark.parametrize("kill", [kill_worker, kill_everything])
def test_a_kill_during_a_batch_loses_and_doubles_nothing(stack: StackProcess, tmp_path: Path, kill) -> None:
    lines = batch_lines(NUM_LINES)
    batch_id = start_batch(stack.client(), write_lines(tmp_path / "in.jsonl", lines))

    def some_are_done() -> bool:
        counts = stack.client().batches.retrieve(batch_id).request_counts
        return counts is not None and 10 <= counts.completed < NUM_LINES - 20

    wait_for(some_are_done, "the batch is half done")
    kill(stack)
    wait_for(lambda: stack.client().batches.retrieve(batch_id).status == "completed", "the batch completes", 90)

    client = stack.client()
    batch = client.batches.retrieve(batch_id)
    output = result_lines(client, batch.output_file_id)
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
    assert batch.error_file_id is None
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed) == (NUM_LINES, NUM_LINES)
    texts = {str(line["response"]["body"]["choices"][0]["message"]["content"]) for line in output}  # type: ignore[index]
    assert len(texts) > 10, "each response belongs to its prompt"


def test_a_killed_launcher_leaves_no_process_behind(stack: StackProcess) -> None:
    processes = stack.descendants()
    assert len(processes) >= 8
    stack.kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
