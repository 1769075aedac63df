"""Link: states that both sides repeat, over a real socket."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.stack import wait_for
from workers.residency import link
from workers.residency.link import Held, HeldModel, LinkClient, LinkedModel, LinkServer, Mode, is_held


def linked(load_id: str = "1", mode: Mode = Mode.SERVING) -> LinkedModel:
    return LinkedModel(load_id=load_id, name="m", config="{}", endpoint="/e", model_hash=None, mode=mode)


class ScriptedFollower:
    """Holds what it is told to, at once."""

    def __init__(self) -> None:
        self.sets: list[list[LinkedModel]] = []
        self.is_wrong = False
        self.begin_work: Callable[[], None] = lambda: None
        self.is_resting: Callable[[], bool] = lambda: False
        self.num_errors = self.num_running = self.num_looks = 0

    def apply(self, models: list[LinkedModel]) -> None:
        if self.is_wrong:
            self.num_errors += 1
            raise RuntimeError("no")
        self.sets.append(models)

    def advance(self) -> bool:
        return False

    def held(self) -> list[HeldModel]:
        self.num_looks += 1
        models = self.sets[-1] if self.sets else []
        return [HeldModel(load_id=each.load_id, num_running=self.num_running, num_begun=0) for each in models]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LinkServer]:
    made = LinkServer(tmp_path / "l.sock")
    yield made
    made.close()


@pytest.fixture
def follower(server: LinkServer) -> Iterator[ScriptedFollower]:
    scripted = ScriptedFollower()
    client = LinkClient(server.path, "chat", scripted, clock=lambda: 0.0)
    scripted.begin_work = client.begin_work
    scripted.is_resting = lambda: client._is_resting
    client.start()
    yield scripted
    client.close()
    client.join(5)


def turn_until(server: LinkServer, models: list[LinkedModel], is_done: object, now: float = 0.0) -> None:
    def turn() -> bool:
        server.wait(0.01)
        server.publish(models, now)
        return bool(is_done())  # type: ignore[operator]

    wait_for(turn, "it is done", 10)


def holds(server: LinkServer) -> list[str]:
    held = server.held("chat", os.getpid())
    return [] if held is None else [each.load_id for each in held.models]


def num_running(server: LinkServer) -> int:
    held = server.held("chat", os.getpid())
    return 0 if held is None else sum(each.num_running for each in held.models)


def test_a_consumer_that_joins_gets_the_present_set_and_reports_what_it_holds(
    server: LinkServer, follower: ScriptedFollower
) -> None:
    turn_until(server, [linked()], lambda: holds(server) == ["1"])
    report = server.held("chat", os.getpid())
    assert report is not None
    assert report.revision == server.revision == 1
    assert follower.sets[-1] == [linked()]
    assert server.held("chat", 1) is None, "another process of this kind has not reported"
    assert server.held("batch", os.getpid()) is None


def test_a_change_is_sent_at_once_and_the_same_set_after_seconds(
    server: LinkServer, follower: ScriptedFollower
) -> None:
    turn_until(server, [linked()], lambda: holds(server) == ["1"])
    num_sets = len(follower.sets)
    draining = [linked(mode=Mode.DRAINING)]
    turn_until(server, draining, lambda: follower.sets[-1] == draining)
    assert len(follower.sets) == num_sets + 1
    assert server.revision == 2
    turn_until(server, draining, lambda: len(follower.sets) == num_sets + 2, now=5.5)
    assert server.revision == 2, "a repeated set is no change"


def test_a_consumer_at_rest_reports_work_when_it_begins_and_then_only_changes(
    server: LinkServer, follower: ScriptedFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_SEND_SECONDS", 3600.0)
    turn_until(server, [linked()], lambda: holds(server) == ["1"])
    wait_for(follower.is_resting, "it rests", 10)
    follower.num_running = 1
    follower.begin_work()
    turn_until(server, [linked()], lambda: num_running(server) == 1)
    num_looks = follower.num_looks
    wait_for(lambda: follower.num_looks >= num_looks + 2, "two looks", 10)
    assert not server._socket.poll(0)


def test_an_error_of_a_consumer_does_not_end_its_link(server: LinkServer, follower: ScriptedFollower) -> None:
    follower.is_wrong = True
    turn_until(server, [linked()], lambda: follower.num_errors)
    follower.is_wrong = False
    turn_until(server, [linked("2")], lambda: holds(server) == ["2"])
    assert (follower.num_errors, follower.sets[-1]) == (1, [linked("2")])
    report = server.held("chat", os.getpid())
    assert report is not None
    assert report.revision == server.revision == 2


def test_a_wait_ends_when_another_thread_wakes_it(server: LinkServer) -> None:
    began = time.monotonic()
    server.wake()
    server.wait(60)
    assert time.monotonic() - began < 30, "it has waited for the whole time"


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([], False),
        ([(5, [])], False),
        ([(5, ["other"])], False),
        ([(5, ["mine"])], True),
        ([(4, [])], True),  # it has not acted on the set that retires the load
        ([(5, []), (5, ["mine"])], True),
    ],
)
def test_a_load_is_let_go_when_no_consumer_may_hold_it(reports: list[tuple[int, list[str]]], expected: bool) -> None:
    held = [
        Held(
            kind="chat",
            pid=1,
            revision=revision,
            models=[HeldModel(load_id=each, num_running=0, num_begun=0) for each in models],
        )
        for revision, models in reports
    ]
    assert is_held(held, "mine", 5) is expected
