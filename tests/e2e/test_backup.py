"""A stack that is restored from a backup made under load finishes its batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.command import millrace
from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def completed(stack: StackProcess, batch_id: str) -> int:
    counts = stack.client().batches.retrieve(batch_id).request_counts
    return counts.completed if counts else 0


def test_a_batch_that_was_half_done_in_a_backup_ends_with_every_line_once(tmp_path: Path, slow_models: Path) -> None:
    (slow_models / "fake.yaml").write_text("name: fake\nbackend: fake\nslots: 2\nstep_seconds: 0.005\n")
    lines = batch_lines(80)
    stack = StackProcess(tmp_path, slow_models)
    stack.start()
    try:
        done = start_batch(stack.client(), write_lines(tmp_path / "done.jsonl", batch_lines(2)))
        wait_for(lambda: stack.client().batches.retrieve(done).status == "completed", "an earlier batch completes")
        earlier = stack.client().files.content(stack.client().batches.retrieve(done).output_file_id or "").text
        batch_id = start_batch(stack.client(), write_lines(tmp_path / "in.jsonl", lines))
        wait_for(lambda: completed(stack, batch_id) >= 10, "the batch has begun")
        made = millrace("db", "backup", "kept", "--state-dir", stack.state_dir, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        before = completed(stack, batch_id)
        assert before < len(lines), "the batch ran during the backup and has not ended"
        stack.interrupt()
        shutil.rmtree(stack.state_dir)
        restored = millrace("db", "restore", "kept", "--state-dir", stack.state_dir, cwd=tmp_path)
        assert restored.returncode == 0, restored.stderr
        stack.start()
        assert stack.client().files.content(stack.client().batches.retrieve(done).output_file_id or "").text == earlier
        assert completed(stack, batch_id) >= 10, "lines that ended before the backup are not run again"
        wait_for(lambda: stack.client().batches.retrieve(batch_id).status == "completed", "the batch completes", 90)
        batch = stack.client().batches.retrieve(batch_id)
        output = result_lines(stack.client(), batch.output_file_id)
        assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
        assert batch.error_file_id is None
    finally:
        stack.close()
