"""The tools of the fault tests bite: an oracle that says yes to everything proves nothing."""

from __future__ import annotations

from tests.faults.load import Chats, ask, expected_answer, listen, new_prompt, start_batch, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack


def test_an_undisturbed_stack_satisfies_the_oracle(stack: FaultStack, oracle: Oracle) -> None:
    with Chats(stack) as chats:
        batch_id = start_batch(stack, 12)
        assert wait_batch(stack, batch_id) == "completed"
    assert chats.ends["answered"] > 0
    assert set(chats.ends) == {"answered"}
    prompt = new_prompt()
    assert ask(stack, prompt) == "".join(listen(stack, prompt)) == expected_answer(prompt)
    oracle.check()
