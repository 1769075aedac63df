"""Model of leases with several workers and one row: crashes, pauses, late writes, cancels.

`tests/service/db/test_lease_policy.py` runs the same rules on Postgres.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core import states
from tests.support import lease_model
from tests.support.hypothesis_profile import examples
from tests.support.lease_model import Leased, LeaseState

LEASE = timedelta(seconds=60)
TRUST = timedelta(seconds=states.trust_seconds(60))
WORKERS = st.sampled_from(["a", "b", "c"])
LINES = 4


@dataclass
class Hold:
    """A claim in the memory of a worker, with times of its own clock."""

    fence: int
    renewed_at: timedelta


class LeaseMachine(RuleBasedStateMachine):
    """Workers act on the claims in their memory, however old those are."""

    @initialize(skews=st.lists(st.integers(-3600, 3600), min_size=3, max_size=3), max_attempts=st.integers(1, 4))
    def begin(self, skews: list[int], max_attempts: int) -> None:
        self.now = timedelta()
        self.row = Leased()
        self.max_attempts = max_attempts
        self.skew = {name: timedelta(seconds=skew) for name, skew in zip("abc", skews, strict=True)}
        self.holds: dict[str, Hold] = {}
        self.ended: set[int] = set()
        self.was_finished = False
        self.fences: list[int] = [0]
        self.lost = 0

    def clock(self, worker: str) -> timedelta:
        return self.now + self.skew[worker]

    def trusts(self, worker: str) -> bool:
        hold = self.holds.get(worker)
        return hold is not None and self.clock(worker) - hold.renewed_at < TRUST

    def move(self, row: Leased | None) -> bool:
        if row is None:
            return False
        if row.fence != self.row.fence:
            self.fences.append(row.fence)
        self.row = row
        return True

    @rule(seconds=st.integers(1, 90))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        was, began = self.row, self.clock(worker)
        taken = lease_model.claim(was, worker, self.now, LEASE) or lease_model.take_over(was, worker, self.now, LEASE)
        self.lost += taken is not None and was.state is LeaseState.RUNNING
        if self.move(taken):
            assert was.state is not LeaseState.DONE, "what is finished is never claimed"
            self.holds[worker] = Hold(self.row.fence, began)

    @rule(worker=WORKERS, answer_takes=st.integers(0, 20))
    def heartbeat(self, worker: str, answer_takes: int) -> None:
        hold, began = self.holds.get(worker), self.clock(worker)
        if hold is None:
            return
        is_renewed = self.move(lease_model.renew(self.row, hold.fence, self.now, LEASE))
        self.now += timedelta(seconds=answer_takes)
        if is_renewed:
            hold.renewed_at = began
        else:
            del self.holds[worker]

    @rule(worker=WORKERS, line=st.integers(1, LINES))
    def write(self, worker: str, line: int) -> None:
        """Write under a claim, trusted or not: the fence decides about late ones."""
        hold = self.holds.get(worker)
        if hold is None:
            return
        if lease_model.may_write(self.row, hold.fence):
            assert self.row.owner == worker
            assert hold.fence == max(self.fences), "a write under an old fence never lands"
            assert not self.was_finished, "nothing is written to what is finished"
            self.ended.add(line)
        elif self.row.fence != hold.fence:
            del self.holds[worker]

    @rule(worker=WORKERS)
    def leave(self, worker: str) -> None:
        hold, was = self.holds.pop(worker, None), self.row
        if hold is None:
            return
        is_work_left = len(self.ended) < LINES
        if not self.move(lease_model.leave(was, hold.fence, is_work_left=is_work_left)):
            return
        self.was_finished = not is_work_left
        if is_work_left:
            assert self.row.attempt == was.attempt - 1 == self.lost, "an attempt is spent by losing a lease"

    @rule(worker=WORKERS)
    def crash(self, worker: str) -> None:
        self.holds.pop(worker, None)

    @rule()
    def sweep(self) -> None:
        self.lost += self.move(lease_model.expire(self.row, self.now, self.max_attempts))

    @rule()
    def cancel(self) -> None:
        self.move(lease_model.close(self.row))
        assert lease_model.close(self.row) is None

    @invariant()
    def the_row_is_sound(self) -> None:
        self.row.check()
        assert self.row.num_lost == self.lost or self.row.state is LeaseState.DONE

    @invariant()
    def fences_only_rise_and_each_claim_has_its_own(self) -> None:
        assert self.fences == sorted(set(self.fences))

    @invariant()
    def one_worker_at_most_trusts_its_lease_and_it_holds_the_row_unless_that_was_closed(self) -> None:
        trusting = [worker for worker in self.holds if self.trusts(worker)]
        assert len(trusting) <= 1
        if trusting and self.row.state is not LeaseState.DONE:
            assert (self.row.owner, self.row.fence) == (trusting[0], self.holds[trusting[0]].fence)

    @invariant()
    def what_is_finished_stays_so_with_every_line_ended(self) -> None:
        assert not self.was_finished or (self.row.state is LeaseState.DONE and len(self.ended) == LINES)


TestLeases = LeaseMachine.TestCase
TestLeases.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)


def test_a_lease_is_trusted_for_less_than_it_lasts() -> None:
    for seconds in (1.0, 3.0, 15.0, 60.0, 600.0):
        assert 0 < states.trust_seconds(seconds) < seconds


def test_a_row_that_lost_three_leases_is_suspicious() -> None:
    row, now = Leased(), timedelta()
    for _ in range(states.LOST_LEASES):
        taken = lease_model.claim(row, "a", now, LEASE) or lease_model.take_over(row, "a", now, LEASE)
        assert taken is not None
        assert not states.is_suspicious(taken.attempt)
        row, now = taken, now + 2 * LEASE
    taken = lease_model.take_over(row, "a", now, LEASE)
    assert taken is not None
    assert states.is_suspicious(taken.attempt)
    assert taken.num_lost == states.LOST_LEASES
