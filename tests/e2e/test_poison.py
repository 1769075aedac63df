"""Requests that crash the engine natively fail alone and are then refused; all other requests are answered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from sqlalchemy import select

from db.connections import database_engine
from db.tables import EngineCrash, Quarantine
from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

NUM_LINES = 1000
POISON = (7, 8, 300, 301, 999)  # two pairs of neighbours
FAULTS = ("<<segfault>>", "<<abort>>", "<<memory>>")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[StackProcess]:
    models = tmp_path / "models"
    models.mkdir()
    (models / "fake.yaml").write_text("name: fake\nbackend: fake\nslots: 8\nstep_seconds: 0.001\n")
    process = StackProcess(tmp_path, models)
    process.start()
    try:
        yield process
    finally:
        process.close()


def messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


def rows(stack: StackProcess, table: type[EngineCrash] | type[Quarantine]) -> list[Any]:
    line = " ".join(stack.find("bin/postgres", "-D").cmdline())
    folder = line.split("-k ")[1].split(" ")[0] if "-k " in line else ""
    engine = database_engine(f"postgresql://millrace@/millrace?host={folder}", pool_size=1)
    try:
        with engine.begin() as connection:
            return list(connection.execute(select(table.__table__)).all())
    finally:
        engine.dispose()


def test_five_poison_lines_of_a_thousand_fail_alone_within_fifteen_restarts(
    stack: StackProcess, tmp_path: Path
) -> None:
    lines: list[Any] = batch_lines(NUM_LINES)
    for number, index in enumerate(POISON):
        lines[index]["body"]["messages"] = messages(f"Question {index} {FAULTS[number % len(FAULTS)]}")
    batch_id = start_batch(stack.client(), write_lines(tmp_path / "in.jsonl", lines))
    began = time.monotonic()
    client = stack.client()
    wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch completes", 150)
    print(f"{NUM_LINES} lines in {time.monotonic() - began:.1f} s")  # noqa: T201
    batch = client.batches.retrieve(batch_id)
    failed = result_lines(client, batch.error_file_id)
    assert [line["custom_id"] for line in failed] == [f"line-{index}" for index in POISON]
    assert {line["response"]["body"]["error"]["code"] for line in failed} == {"engine_crash"}  # type: ignore[index]
    output = [line["custom_id"] for line in result_lines(client, batch.output_file_id)]
    assert output == [f"line-{index}" for index in range(NUM_LINES) if index not in POISON]
    crashes = rows(stack, EngineCrash)
    print(f"{len(crashes)} crashes: {[row.exit_code for row in crashes]}")  # noqa: T201
    assert len(POISON) <= len(crashes) <= 15
    assert len(rows(stack, Quarantine)) == len(POISON)


def test_a_poison_chat_fails_at_once_is_not_run_again_and_is_refused_the_third_time(stack: StackProcess) -> None:
    client = stack.client().with_options(max_retries=0)
    poison: Any = {"model": "fake", "messages": messages("<<segfault>>")}
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(openai.APIStatusError) as crashed:
            client.chat.completions.create(**poison)
        assert crashed.value.status_code == 500
        assert crashed.value.code == "engine_crash"
        assert client.chat.completions.create(model="fake", messages=messages("hello")).choices
        assert time.monotonic() - began < 20
    engine = stack.find("engine.process.server").pid
    with pytest.raises(openai.BadRequestError, match="refused for 24 hours"):
        client.chat.completions.create(**poison)
    assert stack.find("engine.process.server").pid == engine, "the refused request did not reach the engine"


def test_lines_of_a_killed_engine_continue_within_three_seconds(stack: StackProcess, tmp_path: Path) -> None:
    client = stack.client()
    batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", batch_lines(NUM_LINES)))

    def num_done() -> int:
        counts = client.batches.retrieve(batch_id).request_counts
        return counts.completed if counts is not None else 0

    wait_for(lambda: num_done() > 50, "the batch has begun")
    engine = stack.find("engine.process.server")
    engine.kill()
    psutil.wait_procs([engine], timeout=10)
    began, before = time.monotonic(), num_done()
    wait_for(lambda: num_done() > before + 32, "more lines have ended than were running", 30)
    seconds = time.monotonic() - began
    print(f"resumed after {seconds:.1f} s")  # noqa: T201
    wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch completes", 90)
    assert client.batches.retrieve(batch_id).error_file_id is None
