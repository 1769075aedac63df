"""Commands of the batch extensions: watch lines, retry, merge, pause, resume."""

from __future__ import annotations

import json

from tests.support.command import Terminal
from tests.support.stack import batch_lines, write_lines


def ended_with_a_failed_line(terminal: Terminal) -> str:
    lines = batch_lines(4)
    lines[2]["body"] = {"model": "fake"}
    write_lines(terminal.folder / "in.jsonl", lines)
    return terminal.run("batch", "create", "in.jsonl", "--watch").stderr.splitlines()[0]


def test_lines_are_printed_as_they_end(terminal: Terminal) -> None:
    batch_id = ended_with_a_failed_line(terminal)
    done = terminal.run("batch", "watch", "--lines", batch_id)
    assert done.returncode == 3
    assert {"line 1 line-0: completed", "line 3 line-2: missing_required_parameter"} <= set(done.stdout.splitlines())
    told = [
        json.loads(line) for line in terminal.run("batch", "watch", "--lines", "--json", batch_id).stdout.splitlines()
    ]
    assert {"batch.line", "batch.status"} <= {event.get("event") for event in told}
    assert told[-1]["object"] == "batch"


def test_failed_lines_are_tried_again_and_both_answers_merged(terminal: Terminal) -> None:
    batch_id = ended_with_a_failed_line(terminal)
    assert terminal.json("batch", "retry", batch_id)["parent_batch_id"] == batch_id
    assert terminal.run("batch", "retry", batch_id, "line-1", "--watch").returncode == 0
    merged = terminal.run("batch", "download", batch_id, "--merged").stdout.splitlines()
    assert len(merged) == 4


def test_a_batch_is_paused_and_goes_on_and_is_fetched_meanwhile(terminal: Terminal) -> None:
    write_lines(terminal.folder / "in.jsonl", batch_lines(300, "slow", max_tokens=20))
    batch_id = terminal.ask("batch", "create", "in.jsonl").strip()
    assert terminal.ask("batch", "pause", batch_id) == f"{batch_id} is paused.\n"
    assert terminal.json("batch", "resume", batch_id)["paused_at"] is None
    lines = terminal.ask("batch", "download", batch_id, "--partial").splitlines()
    assert all(json.loads(line)["custom_id"].startswith("line-") for line in lines)
    terminal.ask("batch", "cancel", batch_id)
