"""Shard lanes: a shard that is claimed while its process shuts down."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from core.states import JobState, ShardState
from db.tables import Job, Shard
from tests.support.rows import make_running_batch
from tests.support.scripted_engine import ScriptedEngine
from workers.context import WorkerContext
from workers.runtime.leases import Lease
from workers.shards.lanes import ShardLanes


def test_a_shard_claimed_during_a_shutdown_begins_no_line(worker: WorkerContext, engine: ScriptedEngine) -> None:
    lanes = ShardLanes(worker, worker.models["fake"])
    hold = worker.leases.hold

    def hold_then_drain(*given: Any) -> Lease:
        lanes.drain(abort=False)
        return hold(*given)

    worker.leases.hold = hold_then_drain  # type: ignore[assignment, method-assign]
    with worker.database.begin() as connection:
        make_running_batch(connection, [2])
    lanes.work()
    with worker.database.begin() as connection:
        assert connection.execute(select(Shard.state)).scalar_one() == ShardState.READY
        assert set(connection.execute(select(Job.state)).scalars()) == {JobState.QUEUED}
    assert engine.asked == []
