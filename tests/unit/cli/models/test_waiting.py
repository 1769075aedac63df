"""`--wait` of `millrace models load` and `unload`, against the states that a server shows one after the other."""

from __future__ import annotations

from typing import Any, cast

import pytest

from cli.client import Client
from cli.errors import CommandFailed
from cli.models.waiting import wait_loaded, wait_unloaded


class Server:
    """Shows a model in each of these states once, and the last one from then on."""

    def __init__(self, *states: tuple[str, bool], reason: str | None = None) -> None:
        self.states = list(states)
        self.reason = reason
        self.shown: list[str] = []
        self.seconds = 0.0

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/models/lab/m"
        status, is_requested = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"id": "lab/m", "status": status, "load_requested": is_requested, "reason": self.reason}

    def pause(self, seconds: float) -> None:
        self.seconds += seconds

    def wait_loaded(self) -> dict[str, Any]:
        return wait_loaded(cast("Client", self), "lab/m", self.show, self.pause)

    def show(self, model: dict[str, Any]) -> None:
        self.shown.append(model["status"])


def test_a_load_is_over_when_the_request_is_and_the_model_serves() -> None:
    server = Server(("loading", True), ("ready", True), ("ready", False))
    assert server.wait_loaded()["status"] == "ready"
    assert server.shown == ["loading", "ready"]


@pytest.mark.parametrize("late", ["loading", "unloaded", "unserved"])
def test_a_request_that_ends_before_the_worker_has_reported_the_model_is_not_a_failure(late: str) -> None:
    server = Server(("loading", True), (late, False), (late, False), ("ready", False))
    assert server.wait_loaded()["status"] == "ready"


def test_a_model_that_has_left_again_is_not_waited_for_for_ever() -> None:
    server = Server(
        ("loading", True), ("unloaded", False), reason="it is not in memory, and loads when a request needs it"
    )
    with pytest.raises(CommandFailed, match="it is not in memory"):
        server.wait_loaded()
    assert server.seconds < 10


def test_a_failure_of_an_earlier_load_is_not_the_outcome_of_this_one() -> None:
    server = Server(("loading", True), ("failed", False), reason="it needs 8.0 GiB, and cpu has 4.0 GiB")
    with pytest.raises(CommandFailed, match=r"lab/m is not loaded: it needs 8\.0 GiB"):
        server.wait_loaded()


def test_a_model_that_no_worker_has_is_not_waited_for_for_ever() -> None:
    server = Server(("unserved", True), reason="no chat worker serves it")
    with pytest.raises(CommandFailed, match="no chat worker serves it"):
        server.wait_loaded()
    assert 30 < server.seconds < 40


def test_an_unload_is_over_when_no_worker_serves_the_model() -> None:
    server = Server(("ready", False), ("degraded", False), ("unloaded", False))
    model = wait_unloaded(cast("Client", server), "lab/m", server.show, server.pause)
    assert (model["status"], server.shown) == ("unloaded", ["ready", "degraded"])
