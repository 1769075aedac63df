from __future__ import annotations

import time
from collections.abc import Mapping

from sqlalchemy.exc import OperationalError

from tests.support.stack import wait_for
from workers.runtime.leases import LeaseKeeper, Renewed


class World:
    """A database and an engine for the keeper, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rows: dict[str, Renewed] = {}
        self.alive = {"a", "b"}
        self.asked: list[Mapping[str, int]] = []
        self.keeper = LeaseKeeper(
            self.renew, self.alive.__contains__, heartbeat_seconds=10, lease_seconds=60, clock=lambda: self.now
        )

    def renew(self, held: Mapping[str, int]) -> list[Renewed]:
        self.asked.append(held)
        return list(self.rows.values())


def test_a_confirmed_lease_stays_trusted() -> None:
    world = World()
    lease = world.keeper.hold("s", "a", 1)
    world.rows["s"] = Renewed("s", 1, False)
    for _ in range(20):
        world.now += 10
        world.keeper.beat()
        assert world.keeper.is_trusted(lease)


def test_a_lease_not_renewed_for_long_is_not_trusted() -> None:
    world = World()
    lease = world.keeper.hold("s", "a", 1)
    world.now += 44
    assert world.keeper.is_trusted(lease)
    world.now += 2
    assert not world.keeper.is_trusted(lease)
    assert not lease.is_lost


def test_an_unconfirmed_lease_is_lost_and_its_holder_is_notified() -> None:
    world, notified = World(), []
    missing = world.keeper.hold("s", "a", 1, lambda: notified.append("missing"))
    fenced = world.keeper.hold("t", "a", 1, lambda: notified.append("fenced"))
    world.rows["t"] = Renewed("t", 2, False)
    world.keeper.beat()
    world.keeper.beat()
    assert missing.is_lost
    assert fenced.is_lost
    assert notified == ["missing", "fenced"]


def test_leases_of_a_hung_engine_are_not_renewed() -> None:
    world = World()
    hung, fine = world.keeper.hold("s", "a", 1), world.keeper.hold("t", "b", 1)
    world.rows = {"t": Renewed("t", 1, False)}
    world.alive.discard("a")
    for _ in range(5):
        world.now += 10
        world.keeper.beat()
    assert world.asked == [{"t": 1}] * 5
    assert not world.keeper.is_trusted(hung)
    assert world.keeper.is_trusted(fine)


def test_unwanted_work_is_notified_once_and_keeps_its_lease() -> None:
    world, notified = World(), []
    lease = world.keeper.hold("s", "a", 1, lambda: notified.append("changed"))
    world.rows["s"] = Renewed("s", 1, True)
    world.keeper.beat()
    world.keeper.beat()
    assert lease.is_unwanted
    assert not lease.is_lost
    assert notified == ["changed"]


def test_a_lease_dropped_during_the_renewal_is_not_lost() -> None:
    world = World()
    lease = world.keeper.hold("s", "a", 1)

    def renew_slowly(held: Mapping[str, int]) -> list[Renewed]:
        world.keeper.drop(lease)
        return []

    world.keeper._renew = renew_slowly
    world.keeper.beat()
    assert not lease.is_lost


def test_trust_counts_from_the_start_of_the_renewal() -> None:
    world = World()
    lease = world.keeper.hold("s", "a", 1)

    def renew_slowly(held: Mapping[str, int]) -> list[Renewed]:
        world.now += 30
        return [Renewed("s", 1, False)]

    world.keeper._renew = renew_slowly
    world.keeper.beat()
    assert lease.renewed_at == 1000.0


def test_a_row_claimed_twice_in_a_process_is_lost_to_the_first_holder() -> None:
    """F29: after an outage longer than a lease, a second lane may claim the row before the first one's heartbeat."""
    world, notified = World(), []
    first = world.keeper.hold("s", "a", 1, lambda: notified.append("first"))
    second = world.keeper.hold("s", "a", 2, lambda: notified.append("second"))
    assert (first.is_lost, second.is_lost, notified, world.keeper.num_lost) == (True, False, ["first"], 1)
    world.keeper.drop(first)
    world.rows["s"] = Renewed("s", 2, False)
    world.now += 50
    world.keeper.beat()
    assert world.asked[-1] == {"s": 2}
    assert world.keeper.is_trusted(second)
    assert notified == ["first"]


def test_a_failed_renewal_is_soon_repeated() -> None:
    began: list[float] = []

    def renew(held: Mapping[str, int]) -> list[Renewed]:
        began.append(time.monotonic())
        raise OperationalError("UPDATE", None, Exception("away"))

    keeper = LeaseKeeper(renew, lambda _: True, heartbeat_seconds=2, lease_seconds=60)
    keeper.hold("s", "a", 1)
    keeper.start()
    wait_for(lambda: len(began) > 2, "it tries again")
    keeper.close()
    assert began[1] - began[0] < 1.5
