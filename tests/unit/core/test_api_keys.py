"""Generation of API keys."""

from __future__ import annotations

from core.api_keys import new_key


def test_a_key_is_hard_to_guess_and_not_printed_by_accident() -> None:
    made, other = new_key(), new_key()
    assert made.text != other.text
    assert len(made.text.rpartition("-")[2]) == 64
    assert made.text not in repr(made)
    assert made.text.startswith(f"{made.prefix}-")
