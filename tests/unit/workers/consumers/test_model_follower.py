"""Model follower: connects to models that are listed, and lets go of those that are not."""

from __future__ import annotations

from typing import Any

import pytest

from core.models.model_files import ModelConfig
from engine.process.protocol import EngineInfo
from workers.consumers.model_follower import ModelFollower
from workers.residency.link import LinkedModel, Mode

INFO = EngineInfo(model="m", build="b", context_size=64, slots=4, num_vocab=9, template_hash="h")


class Connection:
    """An engine that answers when the test says so."""

    def __init__(self) -> None:
        self.info: EngineInfo | None = None
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Consumer:
    """Records the calls of a follower, and runs what the test sets."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.running = 0
        self.is_wrong = False
        self.control = self

    def reconcile(self) -> None: ...

    def add_model(self, served: Any) -> None:
        self.calls.append(("add", served.model.name, served.model.context_size, served.model_hash))

    def retire_model(self, name: str, *, abort: bool) -> None:
        self.calls.append(("retire", name, abort))
        if self.is_wrong:
            raise RuntimeError("no")

    def num_running(self, name: str) -> int:
        return self.running

    def num_begun(self, name: str) -> int:
        return 7

    def remove_model(self, name: str) -> None:
        self.calls.append(("remove", name))


class Bench:
    def __init__(self) -> None:
        self.consumer = Consumer()
        self.connections: list[Connection] = []
        self.follower = ModelFollower(self.consumer, "me", connect=self.connect)  # type: ignore[arg-type]

    def connect(self, endpoint: str, client: str) -> Any:
        assert (endpoint, client) == ("/e", "me")
        self.connections.append(Connection())
        return self.connections[-1]

    def apply(self, *models: tuple[str, Mode]) -> list[str]:
        """Apply a set, and return the loads that are held after it."""
        config = ModelConfig(name="m", context_size=128).model_dump_json()
        self.follower.apply(
            [
                LinkedModel(load_id=load, name="m", config=config, endpoint="/e", model_hash="x", mode=mode)
                for load, mode in models
            ]
        )
        self.follower.advance()
        return [held.load_id for held in self.follower.held()]

    def serve(self) -> None:
        self.apply(("1", Mode.SERVING))
        self.connections[0].info = INFO
        self.follower.advance()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_model_is_added_once_its_engine_answers(bench: Bench) -> None:
    assert bench.apply(("1", Mode.SERVING)) == []
    assert bench.consumer.calls == []
    bench.connections[0].info = INFO
    assert bench.apply(("1", Mode.SERVING)) == ["1"]
    assert bench.consumer.calls == [("add", "m", 128, "x")]
    assert bench.follower.held()[0].num_begun == 7


def test_a_model_is_let_go_when_nothing_of_it_runs(bench: Bench) -> None:
    bench.serve()
    bench.consumer.running = 1
    assert bench.apply(("1", Mode.DRAINING)) == ["1"]
    assert bench.apply(("1", Mode.ABORTING)) == ["1"], "a drain may be hurried"
    assert bench.apply(("1", Mode.DRAINING)) == ["1"], "and not be taken back"
    bench.consumer.running = 0
    assert bench.apply(("1", Mode.ABORTING)) == []
    assert bench.consumer.calls[1:] == [("retire", "m", False), ("retire", "m", True), ("remove", "m")]
    assert bench.connections[0].is_closed


def test_a_model_that_is_not_listed_any_more_is_given_back(bench: Bench) -> None:
    bench.serve()
    assert bench.apply() == []
    assert bench.consumer.calls[1:] == [("retire", "m", True), ("remove", "m")]


def test_a_retirement_that_failed_is_repeated_with_the_next_set(bench: Bench) -> None:
    bench.serve()
    bench.consumer.is_wrong = True
    with pytest.raises(RuntimeError):
        bench.apply(("1", Mode.DRAINING))
    assert [held.load_id for held in bench.follower.held()] == ["1"]
    bench.consumer.is_wrong = False
    assert bench.apply(("1", Mode.DRAINING)) == []
    assert bench.consumer.calls[1:] == [("retire", "m", False), ("retire", "m", False), ("remove", "m")]


def test_a_model_that_leaves_before_its_engine_has_answered_is_only_disconnected(bench: Bench) -> None:
    bench.apply(("1", Mode.SERVING))
    assert bench.apply(("1", Mode.DRAINING)) == []
    assert bench.consumer.calls == []
    assert bench.connections[0].is_closed


def test_another_load_of_a_model_waits_until_the_first_is_let_go(bench: Bench) -> None:
    bench.serve()
    bench.consumer.running = 1
    assert bench.apply(("2", Mode.SERVING)) == ["1"]
    assert len(bench.connections) == 1
    bench.consumer.running = 0
    bench.follower.advance()
    bench.apply(("2", Mode.SERVING))
    bench.connections[1].info = INFO
    assert bench.apply(("2", Mode.SERVING)) == ["2"]
