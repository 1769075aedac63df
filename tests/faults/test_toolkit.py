"""The tools of the fault tests find faults: an oracle that accepts everything proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest

from cli.stack.services import Services
from core import ids
from tests.faults.load import MARKER, Chats, ask, expected_answer, new_prompt, start_batch, stream_chat, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack, Role
from tests.support.stack import wait_for


def test_an_undisturbed_stack_satisfies_the_oracle(stack: FaultStack, oracle: Oracle) -> None:
    with Chats(stack) as chats:
        batch_id = start_batch(stack, 12)
        assert wait_batch(stack, batch_id) == "completed"
    assert chats.ends["answered"] > 0
    assert set(chats.ends) == {"answered"}
    prompt = new_prompt()
    assert ask(stack, prompt) == "".join(stream_chat(stack, prompt)) == expected_answer(prompt)
    oracle.check()


@pytest.fixture
def batch(stack: FaultStack, oracle: Oracle) -> Any:
    """A batch that has ended and that the oracle has not checked yet."""
    oracle.check()
    batch_id = start_batch(stack, 3)
    assert wait_batch(stack, batch_id) == "completed"
    return stack.client.batches.retrieve(batch_id)


def rewrite(stack: FaultStack, file_id: str, content: bytes) -> None:
    """Replace the bytes of a file, and its size in the row."""
    stack.files.path(file_id).write_bytes(content)
    stack.execute("UPDATE files SET bytes = :size WHERE id = :id", size=len(content), id=file_id)


def swap_answers(content: bytes) -> bytes:
    one, two, *rest = content.splitlines(keepends=True)
    return b"".join([one.replace(b"line-0", b"line-1"), two.replace(b"line-1", b"line-0"), *rest])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.split(b"\n", 1)[1],
        lambda content: content.split(b"\n", 1)[0] + b"\n" + content,
        lambda content: b"".join(reversed(content.splitlines(keepends=True))),
        swap_answers,
    ],
    ids=["lost", "doubled", "out of order", "with another line's answer"],
)
def test_the_oracle_detects_a_line_that_is(
    damage: Callable[[bytes], bytes], stack: FaultStack, oracle: Oracle, batch: Any
) -> None:
    content = stack.client.files.content(batch.output_file_id).content
    rewrite(stack, batch.output_file_id, damage(content))
    with pytest.raises(AssertionError):
        oracle.check()
    rewrite(stack, batch.output_file_id, content)
    oracle.check()


@pytest.mark.parametrize(
    ("damage", "repair"),
    [
        ("UPDATE usage_daily SET requests = requests + 1", "UPDATE usage_daily SET requests = requests - 1"),
        (
            "UPDATE shards SET state = 'running', owner = 'gone', lease_until = now() + interval '1 hour' WHERE batch_id = :id",
            "UPDATE shards SET state = 'done', owner = NULL, lease_until = NULL WHERE batch_id = :id",
        ),
        ("UPDATE files SET bytes = bytes + 1", "UPDATE files SET bytes = bytes - 1"),
        (
            "UPDATE batches SET lines_completed = lines_completed - 1 WHERE id = :id",
            "UPDATE batches SET lines_completed = lines_completed + 1 WHERE id = :id",
        ),
    ],
    ids=[
        "usage without a request",
        "a lease of a dead worker",
        "a truncated file",
        "counts that differ from the lines",
    ],
)
def test_the_oracle_detects(damage: str, repair: str, stack: FaultStack, oracle: Oracle, batch: Any) -> None:
    change(stack, damage, batch.id)
    with pytest.raises(AssertionError):
        oracle.check(timeout_seconds=0.5)
    change(stack, repair, batch.id)
    oracle.check()


def change(stack: FaultStack, statement: str, batch_id: str) -> None:
    stack.execute(statement, **({"id": batch_id} if ":id" in statement else {}))


def test_the_oracle_detects_prompt_text_in_a_log(stack: FaultStack, oracle: Oracle) -> None:
    oracle.check()
    with (stack.process.state_dir / "logs" / "chat.log").open("a") as log:
        log.write(MARKER + "\n" + "-" * len(MARKER) + "\n")
    with pytest.raises(AssertionError, match=r"chat\.log"):
        oracle.check()


def test_bytes_without_a_row_are_swept_when_they_are_old(stack: FaultStack, oracle: Oracle) -> None:
    file_id = ids.new_id(ids.FILE)
    with stack.files.write(file_id) as stream:
        stream.write(b"bytes without a row\n")
    oracle.check()
    assert not stack.files.path(file_id).exists()


@pytest.mark.parametrize("role", [Role.API, Role.CLERK, Role.CHAT, Role.BATCH, Role.ENGINE, Role.WORKER])
def test_a_process_that_is_killed_is_replaced(role: Role, stack: FaultStack) -> None:
    before = stack.pid(role)
    assert stack.restart(role) != before
    wait_for(lambda: ask(stack, "hello") != "", "a chat is answered")


def test_faults_do_not_hit_the_services_of_other_tests(stack: FaultStack, services: Services) -> None:
    for role, other in ((Role.POSTGRES, services._postgres), (Role.VALKEY, services._valkey)):
        assert other is not None
        assert other.child is not None
        assert psutil.pid_exists(other.child.pid)
        assert stack.find(role).pid != other.child.pid
