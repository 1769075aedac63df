"""`millrace validate` without a server, and `millrace estimate` with one."""

from __future__ import annotations

from tests.support.command import Terminal
from tests.support.stack import batch_lines, write_lines


def test_a_server_estimates_when_a_file_would_be_done(terminal: Terminal) -> None:
    write_lines(terminal.folder / "in.jsonl", batch_lines(10, max_tokens=8))
    terminal.ask("batch", "create", "in.jsonl", "--watch")
    assert "Time: about" in terminal.ask("estimate", "in.jsonl")
    assert terminal.json("estimate", "in.jsonl")["estimate"]["measured_batches"] >= 1
