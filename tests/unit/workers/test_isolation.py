"""Isolation of suspects, and fingerprints of requests in quarantine."""

from __future__ import annotations

import json

import pytest

from workers.generation.quarantine import fingerprint
from workers.shards.isolation import Isolation


@pytest.mark.parametrize(
    "sent", ['{"b":1,"a":[1.5,"ü"]}', '{"a": [1.5, "\\u00fc"], "b": 1, "stream": true, "model": "x"}']
)
def test_a_fingerprint_is_of_what_is_asked_and_not_of_how_it_is_spelled(sent: str) -> None:
    asked = fingerprint("t", "m", "/e", {"a": [1.5, "ü"], "b": 1})
    assert fingerprint("t", "m", "/e", json.loads(sent)) == asked
    others = [("u", "m", "/e"), ("t", "n", "/e"), ("t", "m", "/f")]
    assert asked not in {fingerprint(*other, json.loads(sent)) for other in others}
    assert fingerprint("t", "m", "/e", {"a": [1.5, "ü"], "b": 2}) != asked


def test_who_wants_to_be_alone_gets_a_turn_and_shuts_the_door_until_then() -> None:
    room = Isolation()
    assert room.enter("a", alone=False)
    assert room.enter("b", alone=False)
    assert not room.enter("s", alone=True)
    assert not room.enter("a", alone=False), "somebody waits"
    room.leave("a")
    room.leave("b")
    assert room.enter("s", alone=True)
    assert not room.enter("a", alone=False)
    room.leave("s")
    assert room.enter("a", alone=False)


def test_who_is_gone_shuts_no_door() -> None:
    room = Isolation()
    assert room.enter("a", alone=False)
    assert not room.enter("s", alone=True)
    room.forget("s")
    assert room.enter("a", alone=False)
    room.forget("a")
    assert room.enter("t", alone=True)
    room.forget("t")
    assert room.enter("a", alone=False)
