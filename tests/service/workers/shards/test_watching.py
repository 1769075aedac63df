"""Lines of a running batch that a client follows: streamed while they run, each attempt under its own number."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from sqlalchemy import select

from core.queue.events import Event, EventKind, decode_event
from core.queue.names import replay_key
from db.tables import Job
from engine.process.client import EngineLost
from engine.types import Failed, Request
from tests.support.rows import make_running_batch
from tests.support.scripted_engine import ScriptedEngine, echo
from tests.support.stack import wait_for
from workers.context import WorkerContext
from workers.shards.lanes import ShardLanes


class Watched:
    """A shard of one line that runs until the test ends it."""

    def __init__(self, worker: WorkerContext, engine: ScriptedEngine, valkey: redis.Redis) -> None:
        self.engine = engine
        self._key = worker.settings.key_prefix
        self._valkey = valkey
        self._publisher = worker.publisher
        engine.answer = lambda _: None
        with worker.database.begin() as connection:
            make_running_batch(connection, [1])
            self.line: str = connection.execute(select(Job.id)).scalar_one()
        self.lanes = ShardLanes(worker, worker.models["fake"])
        self._thread = threading.Thread(target=self.lanes.work)

    def start(self) -> str:
        """Wait until the line runs; returns its id."""
        self._thread.start()
        wait_for(lambda: bool(self.engine.running), "the line runs")
        return next(iter(self.engine.running))

    def end(self, line: str, outcome: Callable[[Request], Any]) -> None:
        self.engine.end(line, outcome(next(one for one in self.engine.asked if one.id == line)))

    def published(self, line: str) -> list[Event]:
        """Wait for the lane to end; returns the events of the line."""
        self._thread.join(20)
        self._publisher.close()
        stored: Any = self._valkey.lrange(self._key + replay_key(line), 0, -1)
        return [decode_event(data) for data in stored]


@pytest.fixture
def watched(worker: WorkerContext, engine: ScriptedEngine, valkey: redis.Redis) -> Iterator[Watched]:
    shard = Watched(worker, engine, valkey)
    yield shard
    engine.answer = echo
    for key in list(engine.running):
        engine.cancel(key)


def test_a_watched_line_is_streamed_until_its_row_has_the_answer(watched: Watched) -> None:
    line = watched.start()
    watched.lanes.watch("batch_req_unknown")
    watched.lanes.watch(line)
    watched.lanes.watch(line)
    wait_for(lambda: watched.engine.streamed != [], "the engine streams it")
    watched.end(line, echo)
    events = watched.published(line)
    assert watched.engine.streamed == [line]
    assert [event.kind for event in events][-1] is EventKind.DONE
    frames = [frame for event in events for frame in event.frames]
    assert b"so far" in frames[1]
    assert b'"finish_reason":"stop"' in frames[-2]
    assert b'"usage":{"prompt_tokens":3' in frames[-1]
    assert events[-1].seq == len(frames)


def test_a_line_that_is_not_watched_publishes_nothing(watched: Watched) -> None:
    line = watched.start()
    watched.end(line, echo)
    assert watched.published(line) == []


def test_a_line_that_is_watched_before_it_begins_is_streamed_from_its_beginning(watched: Watched) -> None:
    watched.lanes.watch(watched.line)
    line = watched.start()
    wait_for(lambda: watched.engine.streamed == [line], "the engine streams it")
    watched.end(line, echo)
    assert watched.published(line)[-1].kind is EventKind.DONE


def test_a_watched_line_that_fails_publishes_its_problem(watched: Watched) -> None:
    line = watched.start()
    watched.lanes.watch(line)
    wait_for(lambda: watched.engine.streamed != [], "the engine streams it")
    watched.end(
        line, lambda request: Failed(request_id=request.id, code="context_length_exceeded", message="Too long.")
    )
    last = watched.published(line)[-1]
    assert last.kind is EventKind.FAILED
    assert last.problem is not None
    assert last.problem.code == "context_length_exceeded"


def test_a_line_that_runs_again_after_a_crash_has_another_attempt(watched: Watched) -> None:
    line = watched.start()
    watched.lanes.watch(line)
    wait_for(lambda: watched.engine.streamed != [], "the engine streams it")
    watched.end(line, lambda request: EngineLost(request_id=request.id))
    wait_for(lambda: len(watched.engine.streamed) == 2, "it is streamed again, since it is still watched")
    watched.end(line, echo)
    attempts = [event.attempt for event in watched.published(line)]
    assert len(set(attempts)) == 2
    assert attempts == sorted(attempts)
