"""Heartbeats without a database: identities and a database that is away."""

from __future__ import annotations

import time
from pathlib import Path

from db.connections import database_engine
from workers.context import Database
from workers.heartbeat import (
    Identity,
    Status,
    WorkerHeartbeat,
    clerk_identity,
    consumer_identity,
    consumer_slot,
    launcher_identity,
)
from workers.runtime.leases import LeaseKeeper, Renewed

ME = Identity(id="me", kind="batch", host="box", pid=1)


def test_a_database_that_is_away_delays_neither_start_nor_stop() -> None:
    unreachable = Database(database_engine("postgresql://nobody@127.0.0.1:9/none", pool_size=1))
    heartbeat = WorkerHeartbeat(ME, unreachable, Status, seconds=3600)
    heartbeat.start()
    began = time.monotonic()
    heartbeat.close(1)
    assert time.monotonic() - began < 5


def test_a_lease_that_is_only_unwanted_is_not_counted_as_lost() -> None:
    keeper = LeaseKeeper(lambda _: [Renewed("s", 1, True)], lambda _: True, heartbeat_seconds=9, lease_seconds=60)
    keeper.hold("s", "m", 1)
    keeper.beat()
    assert keeper.num_lost == 0


def test_a_consumer_has_a_new_identity_and_a_launcher_keeps_its_own(tmp_path: Path) -> None:
    assert clerk_identity().id != clerk_identity().id
    slot = consumer_slot(tmp_path, "cpu", "a,b")
    first, second = (consumer_identity("chat", slot) for _ in range(2))
    assert (first.id != second.id, first.slot) == (True, second.slot)
    others = [("batch", "cpu", "a,b"), ("chat", "cuda:0", "a,b"), ("chat", "cpu", "a")]
    for kind, device, models in others:
        assert not consumer_identity(kind, consumer_slot(tmp_path, device, models)).id.startswith(str(first.slot))
    assert launcher_identity(tmp_path, "cpu").id == launcher_identity(tmp_path, "cpu").id
    assert launcher_identity(tmp_path, "cpu").id != launcher_identity(tmp_path, "cuda:0").id
