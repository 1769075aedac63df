"""Isolation of suspects, and fingerprints of requests in quarantine."""

from __future__ import annotations

import json

import pytest

from workers.generation.quarantine import request_fingerprint
from workers.shards.isolation import Isolation


@pytest.mark.parametrize(
    "sent", ['{"b":1,"a":[1.5,"ü"]}', '{"a": [1.5, "\\u00fc"], "b": 1, "stream": true, "model": "x"}']
)
def test_a_fingerprint_depends_on_the_request_and_not_on_its_spelling(sent: str) -> None:
    expected = request_fingerprint("t", "m", "/e", {"a": [1.5, "ü"], "b": 1})
    assert request_fingerprint("t", "m", "/e", json.loads(sent)) == expected
    others = [("u", "m", "/e"), ("t", "n", "/e"), ("t", "m", "/f")]
    assert expected not in {request_fingerprint(*other, json.loads(sent)) for other in others}
    assert request_fingerprint("t", "m", "/e", {"a": [1.5, "ü"], "b": 2}) != expected


def test_an_exclusive_line_gets_its_turn_and_nothing_enters_until_then() -> None:
    isolation = Isolation()
    assert isolation.enter("a", exclusive=False)
    assert isolation.enter("b", exclusive=False)
    assert not isolation.enter("s", exclusive=True)
    assert not isolation.enter("a", exclusive=False), "another waits for its turn"
    isolation.leave("a")
    isolation.leave("b")
    assert isolation.enter("s", exclusive=True)
    assert not isolation.enter("a", exclusive=False)
    isolation.leave("s")
    assert isolation.enter("a", exclusive=False)


def test_a_removed_shard_keeps_nothing_out() -> None:
    isolation = Isolation()
    assert isolation.enter("a", exclusive=False)
    assert not isolation.enter("s", exclusive=True)
    isolation.remove("s")
    assert isolation.enter("a", exclusive=False)
    isolation.remove("a")
    assert isolation.enter("t", exclusive=True)
    isolation.remove("t")
    assert isolation.enter("a", exclusive=False)
