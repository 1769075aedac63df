"""Isolation of suspects, and fingerprints of requests in quarantine."""

from __future__ import annotations

import json

import pytest

from workers.generation.quarantine import request_fingerprint
from workers.shards.isolation import Isolation


@pytest.mark.parametrize(
    "sent", ['{"b":1,"a":[1.5,"ü"]}', '{"a": [1.5, "\\u00fc"], "b": 1, "stream": true, "model": "x"}']
)
def test_a_fingerprint_is_of_what_is_asked_and_not_of_how_it_is_spelled(sent: str) -> None:
    asked = request_fingerprint("t", "m", "/e", {"a": [1.5, "ü"], "b": 1})
    assert request_fingerprint("t", "m", "/e", json.loads(sent)) == asked
    others = [("u", "m", "/e"), ("t", "n", "/e"), ("t", "m", "/f")]
    assert asked not in {request_fingerprint(*other, json.loads(sent)) for other in others}
    assert request_fingerprint("t", "m", "/e", {"a": [1.5, "ü"], "b": 2}) != asked


def test_an_exclusive_line_gets_its_turn_and_nothing_enters_until_then() -> None:
    room = Isolation()
    assert room.enter("a", exclusive=False)
    assert room.enter("b", exclusive=False)
    assert not room.enter("s", exclusive=True)
    assert not room.enter("a", exclusive=False), "another waits for its turn"
    room.leave("a")
    room.leave("b")
    assert room.enter("s", exclusive=True)
    assert not room.enter("a", exclusive=False)
    room.leave("s")
    assert room.enter("a", exclusive=False)


def test_a_removed_shard_keeps_nothing_out() -> None:
    room = Isolation()
    assert room.enter("a", exclusive=False)
    assert not room.enter("s", exclusive=True)
    room.remove("s")
    assert room.enter("a", exclusive=False)
    room.remove("a")
    assert room.enter("t", exclusive=True)
    room.remove("t")
    assert room.enter("a", exclusive=False)
