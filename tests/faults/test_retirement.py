"""A process is killed while a model leaves memory for another one, at each step that another process has reached.

Two models of which one fits are added to the stack. `test_failpoints` kills the process that passes a step itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.failpoints import Point
from tests.faults.load import ask, expected_answer, new_prompt, start_batch, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack
from tests.support.processes import command_of
from tests.support.stack import wait_for

pytestmark = pytest.mark.timeout(90)

MODEL = "name: {name}\nbackend: fake\nslots: 4\nstep_seconds: 0.001\nload: lazy\nmemory_bytes: {size}\n"
LAUNCHER = ("-m workers --measured",)
CHAT, BATCH = ("workers.consumers.main chat",), ("workers.consumers.main batch",)
ENGINE = ("engine.process.server", '"model":"first"')


@pytest.fixture(scope="module", autouse=True)
def models(shared_stack: FaultStack) -> Iterator[list[str]]:
    """Two models, each of which needs more than half of the budget."""
    names, folder = ["first", "second"], shared_stack.folder / "models"
    # A killed launcher leaves its row until its successor removes it: only the one that runs now is meant.
    ((budget,),) = shared_stack.query(
        "SELECT budget_bytes FROM workers WHERE kind = 'launcher' AND pid = :pid",
        pid=shared_stack.process.find(*LAUNCHER).pid,
    )
    for name in names:
        (folder / f"{name}.yaml").write_text(MODEL.format(name=name, size=budget * 6 // 10))
    wait_for(lambda: set(names) <= served(shared_stack), "they are listed")
    yield names
    for name in names:
        (folder / f"{name}.yaml").unlink()
    wait_for(lambda: served(shared_stack) == {"fake"}, "they are gone")
    wait_for(lambda: loaded(shared_stack) <= {"fake"}, "they have left memory")


def served(stack: FaultStack) -> set[str]:
    return {model.id for model in stack.client.models.list()}


def loaded(stack: FaultStack) -> set[str]:
    """The models whose engine the launcher that runs now counts as one in memory."""
    pid = stack.process.find(*LAUNCHER).pid
    rows = stack.query(
        "SELECT model FROM worker_engines JOIN workers ON workers.id = worker_id "
        "WHERE kind = 'launcher' AND pid = :pid AND memory_bytes IS NOT NULL",
        pid=pid,
    )
    return {row.model for row in rows}


def running(stack: FaultStack) -> set[str]:
    """The models that have an engine."""
    commands = [" ".join(command_of(process)) for process in stack.process.descendants()]
    engines = [command for command in commands if "engine.process.server" in command]
    return {name for name in ("fake", "first", "second") for command in engines if f'"model":"{name}"' in command}


@pytest.mark.parametrize(
    ("point", "victim"),
    [
        pytest.param(Point.RETIRE_SAID, ENGINE, id="engine-said"),
        pytest.param(Point.RETIRE_LET_GO, ENGINE, id="engine-let_go"),
        pytest.param(Point.RETIRE_SAID, CHAT, id="chat-said"),
        pytest.param(Point.RETIRE_STOPPING, BATCH, id="batch-stopping"),
        pytest.param(Point.RETIRE_LET_GO, LAUNCHER, id="launcher-let_go"),
    ],
)
def test_nothing_is_lost_and_no_memory_leaks_when_a_process_is_killed(
    point: Point, victim: tuple[str, ...], stack: FaultStack, oracle: Oracle
) -> None:
    prompt, again = new_prompt(), new_prompt()
    stack.retry(lambda: ask(stack, new_prompt(), model="first"))
    batch_id = start_batch(stack, 12, model="first", max_tokens=200, ignore_eos=True)
    wait_batch(stack, batch_id, "in_progress")
    with ThreadPoolExecutor(1) as threads:
        with stack.armed(point, "hold"):
            answer = threads.submit(lambda: stack.retry(lambda: ask(stack, prompt, model="second")))
            wait_for(lambda: stack.hit_by(point) is not None, f"{point} is passed", 30)
            stack.process.find(*victim).kill()
            stack.release(point)
        assert answer.result(60) == expected_answer(prompt)
    assert stack.retry(lambda: ask(stack, again, model="first")) == expected_answer(again)
    assert wait_batch(stack, batch_id) == "completed"
    wait_for(lambda: loaded(stack) == running(stack) == {"fake", "first"}, "the other model has left", 20)
    oracle.check()
