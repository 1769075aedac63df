from __future__ import annotations

from core.states import BATCH_MOVES, FINAL_BATCH_STATES, FINAL_JOB_STATES, JOB_MOVES, BatchState, JobState


def test_every_state_has_its_moves() -> None:
    assert set(BATCH_MOVES) == set(BatchState)
    assert set(JOB_MOVES) == set(JobState)


def test_every_state_can_be_reached_and_left_unless_it_is_final() -> None:
    reachable, todo = {BatchState.VALIDATING}, [BatchState.VALIDATING]
    while todo:
        for state in BATCH_MOVES[todo.pop()] - reachable:
            reachable.add(state)
            todo.append(state)
    assert reachable == set(BatchState)
    assert set(FINAL_BATCH_STATES) == {"completed", "failed", "expired", "cancelled"}
    assert set(FINAL_JOB_STATES) == {"completed", "failed", "expired", "cancelled"}
