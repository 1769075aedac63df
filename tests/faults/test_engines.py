"""Requests that crash the engine in different ways: they fail alone, and other requests are delayed only shortly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import psutil
import pytest

from tests.faults.load import (
    Chats,
    ask,
    batch_content,
    create_batch,
    expected_answer,
    new_prompt,
    stream_chat,
    upload,
    wait_batch,
)
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack, Role
from tests.support.stack import result_lines, wait_for

pytestmark = pytest.mark.timeout(180)

HANG_SECONDS = 1.0
HUNG, OUT_OF_MEMORY = 86, 87


@pytest.fixture(scope="module")
def crashing_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStack]:
    """A stack in which a second is a long step, and the model is not degraded by the crashes of these tests."""
    settings = {"MILLRACE_ENGINE_HANG_SECONDS": str(HANG_SECONDS), "MILLRACE_ENGINE_CRASHES": "100"}
    with FaultStack(tmp_path_factory.mktemp("engines"), **settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def crashing_oracle(crashing_stack: FaultStack) -> Iterator[Oracle]:
    oracle = Oracle(crashing_stack)
    yield oracle
    oracle.close()


def poisoned(num_lines: int, faults: dict[int, str]) -> bytes:
    """Start a batch in which some lines trigger faults (see `engine.backends.fake.faults`)."""
    lines = [json.loads(line) for line in batch_content(num_lines).splitlines()]
    for number, fault in faults.items():
        lines[number]["body"]["messages"][0]["content"] += f" <<{fault}>>"
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def start(stack: FaultStack, content: bytes) -> str:
    return create_batch(stack, upload(stack, content))


def errors_of(stack: FaultStack, batch_id: str) -> dict[str, str]:
    """Return the error codes by custom_id."""
    lines: list[Any] = result_lines(stack.client, stack.client.batches.retrieve(batch_id).error_file_id)
    return {line["custom_id"]: line["response"]["body"]["error"]["code"] for line in lines}


def crash_codes(stack: FaultStack) -> list[int]:
    """Return the exit codes of all engines that have crashed."""
    return [code for (code,) in stack.query("SELECT exit_code FROM engine_crashes ORDER BY id")]


@pytest.mark.parametrize(
    ("faults", "most_crashes"),
    [
        pytest.param({25: "segfault"}, 3, id="F9 a native crash"),
        pytest.param({25: "segfault", 27: "abort"}, 6, id="F10 and F11 two in a shard, one of them an abort"),
        pytest.param({25: "hang"}, 3, id="F13 a hang"),
        pytest.param({25: "memory"}, 3, id="F15 no memory"),
    ],
)
def test_lines_that_crash_the_engine_fail_alone(
    crashing_stack: FaultStack, crashing_oracle: Oracle, faults: dict[int, str], most_crashes: int
) -> None:
    """F9, F10, F11, F13, F15: all other lines are answered, those of another tenant too."""
    before = len(crash_codes(crashing_stack))
    batch_id = start(crashing_stack, poisoned(50, faults))
    other_tenant = crashing_stack.other_tenant
    file = other_tenant.files.create(file=("in.jsonl", batch_content(20)), purpose="batch")
    other = other_tenant.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    ).id

    assert wait_batch(crashing_stack, batch_id, timeout_seconds=120) == "completed"
    assert errors_of(crashing_stack, batch_id) == {f"line-{number}": "engine_crash" for number in faults}
    wait_for(
        lambda: other_tenant.batches.retrieve(other).status == "completed", "the other tenant's batch completes", 60
    )
    assert other_tenant.batches.retrieve(other).error_file_id is None
    crashed = crash_codes(crashing_stack)[before:]
    print(f"{list(faults.values())}: engines ended with {crashed}")
    assert len(faults) < len(crashed) <= most_crashes
    if "hang" in faults.values():
        assert set(crashed) == {HUNG}
    if "memory" in faults.values():
        assert set(crashed) == {OUT_OF_MEMORY}
    crashing_oracle.check()


def test_a_poison_stream_gets_an_error_at_once_and_is_not_run_again(
    crashing_stack: FaultStack, crashing_oracle: Oracle
) -> None:
    """F12: an error and the end of the stream within two seconds of the crash."""
    before, prompt = len(crash_codes(crashing_stack)), f"{new_prompt()} <<segfault>>"
    engine, ended = crashing_stack.find(Role.ENGINE), threading.Event()
    codes: list[str | None] = []

    def stream_poison() -> None:
        try:
            stream_chat(crashing_stack, prompt)
        except openai.APIError as error:
            codes.append(error.code)
        ended.set()

    thread = threading.Thread(target=stream_poison)
    thread.start()
    psutil.wait_procs([engine], timeout=30)
    began = time.monotonic()
    assert ended.wait(30)
    seconds = time.monotonic() - began
    thread.join()
    print(f"the stream ended after {seconds:.2f} s")

    assert codes == ["engine_crash"]
    assert seconds <= 2
    ((state, fence),) = crashing_stack.query("SELECT state, fence FROM jobs WHERE body LIKE :it", it=f"%{prompt}%")
    assert (state, fence) == ("failed", 1), "claimed once"
    later = new_prompt()
    assert crashing_stack.retry(lambda: ask(crashing_stack, later)) == expected_answer(later)
    assert len(crash_codes(crashing_stack)) == before + 1
    crashing_oracle.check()


def test_a_step_that_fails_in_python_fails_its_line_and_keeps_the_engine(
    crashing_stack: FaultStack, crashing_oracle: Oracle
) -> None:
    """F14: the other requests of the step run again, on the same engine."""
    before, engine = crash_codes(crashing_stack), crashing_stack.pid(Role.ENGINE)
    with Chats(crashing_stack) as chats:
        batch_id = start(crashing_stack, poisoned(20, {11: "raise"}))
        assert wait_batch(crashing_stack, batch_id) == "completed"
        answered = chats.ends["answered"]
        wait_for(lambda: chats.ends["answered"] > answered + 2, "chats are answered")
    assert errors_of(crashing_stack, batch_id) == {"line-11": "engine_error"}
    assert chats.ends["cut"] == 0
    assert (crash_codes(crashing_stack), crashing_stack.pid(Role.ENGINE)) == (before, engine)
    crashing_oracle.check()


def test_an_engine_without_enough_memory_is_replaced_and_its_lines_are_answered(
    crashing_stack: FaultStack, crashing_oracle: Oracle
) -> None:
    """F15: prlimit on the process; the next engine has no such limit."""
    before, engine = len(crash_codes(crashing_stack)), crashing_stack.find(Role.ENGINE)
    engine.rlimit(psutil.RLIMIT_AS, (engine.memory_info().vms + (64 << 20),) * 2)
    batch_id = start(crashing_stack, poisoned(20, {11: "much"}))
    assert wait_batch(crashing_stack, batch_id, timeout_seconds=90) == "completed"
    assert errors_of(crashing_stack, batch_id) == {}
    assert crash_codes(crashing_stack)[before:] == [OUT_OF_MEMORY]
    crashing_oracle.check()
