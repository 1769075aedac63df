"""`millrace map` where the server restarts under it, and where there is none."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import psutil
import pytest

from cli.client import Client
from core.settings import ROOT
from tests.support.command import Terminal, millrace
from tests.support.halting_proxy import HaltingProxy
from tests.support.stack import StackProcess, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

NUM_ROWS = 60


def test_a_server_that_is_killed_and_started_again_answers_every_row_once(stack: StackProcess, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\n" + "".join(f"row {number}\n" for number in range(NUM_ROWS)))
    command = ("map", "in.csv", "-o", "out.csv", "--model", "fake", "--prompt", "Say: {text}", "--max-tokens", "200")

    def counts() -> list[dict[str, int]]:
        with Client(f"{stack.url}/v1", "any") as client:
            return [batch["request_counts"] for batch in client.pages("/batches")]

    with HaltingProxy(stack.url) as proxy:
        address = ("--base-url", f"{proxy.url}/v1", "--json")
        with Terminal(tmp_path, stack).start(*command, *address, MILLRACE_BATCH_LINES="25") as process:
            wait_for(lambda: sum(each["completed"] for each in counts()) >= 10, "some rows are answered")
            processes = stack.descendants()
            stack.kill()
            psutil.wait_procs(processes, timeout=10)
            stack.start()
            proxy.target = stack.url
            output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(output)["answered"] == NUM_ROWS
    assert [each["total"] for each in sorted(counts(), key=lambda each: each["total"])] == [10, 25, 25]
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["text"] for row in rows] == [f"row {number}" for number in range(NUM_ROWS)]


def test_without_a_server_it_starts_one_and_labels_tickets(tmp_path: Path) -> None:
    schema = "category: billing|shipping|technical|account, priority: low|medium|high"
    done = millrace(
        *("map", ROOT / "batch_inputs" / "support_tickets.csv", "-o", "labels.csv", "--state-dir", "state"),
        *("--prompt", "Classify this ticket: {text}", "--schema", schema, "--limit", "8"),
        cwd=tmp_path,
        OPENAI_BASE_URL="http://127.0.0.1:8000/v1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "240 rows: 8 answered, 232 left out → labels.csv" in done.stdout
    first, second, *rest = csv.DictReader((tmp_path / "labels.csv").read_text().splitlines())
    assert (first["category"], second["category"], second["priority"]) == ("shipping", "billing", "high")
    assert {row["category"] for row in rest[6:]} == {""}
