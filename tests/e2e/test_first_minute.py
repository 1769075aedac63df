"""The commands of the quick start: the demo, and a batch run without a server, on the model that ships with the
project.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.settings import ROOT
from tests.support.stack import batch_lines, clean_environment, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

MILLRACE = str(Path(sys.executable).with_name("millrace"))


def millrace(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = clean_environment() | {"OPENAI_BASE_URL": "http://127.0.0.1:8000/v1"}
    return subprocess.run(
        [MILLRACE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=170
    )


def test_the_demo_labels_every_ticket_and_answers_a_question(tmp_path: Path) -> None:
    done = millrace("demo", "--state-dir", "state", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "240 of 240 lines answered\n" in done.stdout
    assert "The capital of France is Paris.\n" in done.stdout
    assert "open http://127.0.0.1:8000/\n" in done.stdout.rstrip().rsplit("\n\n", 1)[1]
    assert "shipping" in done.stdout
    answers = [json.loads(line) for line in (tmp_path / "state" / "demo_answers.jsonl").read_text().splitlines()]
    labels = [json.loads(answer["response"]["body"]["choices"][0]["message"]["content"]) for answer in answers]
    assert all(set(label) == {"category", "priority"} for label in labels)


def test_a_run_without_a_server_starts_one(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", batch_lines(5, "demo", max_tokens=8))
    done = millrace("run", "in.jsonl", "-o", "out.jsonl", "--state-dir", "state", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("5 of 5 lines answered")


def test_the_demo_files_match_the_output_of_their_tool() -> None:
    from tools.held_out_data import batch_lines as demo_lines
    from tools.held_out_data import batch_table

    assert (ROOT / "batch_inputs" / "support_tickets.jsonl").read_text().splitlines() == list(demo_lines())
    assert (ROOT / "batch_inputs" / "support_tickets.csv").read_text() == batch_table()
