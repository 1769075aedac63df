"""The rules of leases, without a database: who may take a row, who may write to it, and what that leaves behind.

Knows frozen values and a clock that is an argument; the statements in `db.shards` and `db.jobs` are these rules in SQL, and tests
run both side by side. A shard and a job are one kind of row here. What always holds:

* at most one holder is the row's: the one whose fence is the row's, while it is RUNNING. Who trusts a lease is that one, or the
  row was closed meanwhile;
* a fence never goes back, and each claim has one of its own;
* a write under any other fence than the row's is refused, and changes nothing;
* an attempt is spent by losing a lease, not by giving it back;
* a row that is DONE is never taken again.

A rule that does not apply returns None, as its UPDATE returns no row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Final

Instant = timedelta  # since any moment, by one clock: the database's for rows, a process's own for trust

LOST_LEASES: Final = 3  # so often the workers of a row may vanish before what it holds is suspected


class LeaseState(StrEnum):
    """READY may be taken, RUNNING is held, DONE has no work left."""

    READY = "ready"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """The part of a row that says whose it is. `owner` and `until` are there exactly while it is RUNNING."""

    state: LeaseState = LeaseState.READY
    owner: str | None = None
    fence: int = 0
    until: Instant | None = None
    attempt: int = 0

    @property
    def num_lost(self) -> int:
        """Leases that ended with nobody giving them back, as its present holder sees it."""
        return self.attempt - (1 if self.state is LeaseState.RUNNING else 0)

    def check(self) -> None:
        """What holds of any row."""
        assert (self.state is LeaseState.RUNNING) == (self.owner is not None and self.until is not None)
        assert 0 <= self.attempt <= self.fence, "each attempt began with a claim"


def is_expired(row: Leased, now: Instant) -> bool:
    """Has its holder been silent for the whole lease?"""
    return row.state is LeaseState.RUNNING and row.until is not None and row.until < now


def claim(row: Leased, owner: str, now: Instant, lease: timedelta) -> Leased | None:
    """Take a row that is READY; the new fence shuts out whoever held it before."""
    return _taken(row, owner, now, lease) if row.state is LeaseState.READY else None


def take_over(row: Leased, owner: str, now: Instant, lease: timedelta) -> Leased | None:
    """Take a row from a holder that has gone silent. Its attempt stays spent."""
    return _taken(row, owner, now, lease) if is_expired(row, now) else None


def renew(row: Leased, fence: int, now: Instant, lease: timedelta) -> Leased | None:
    """A heartbeat of whoever holds it, also one that comes late, as long as nobody else has taken it.

    By the fence and not by the owner: one who never heard that its claim succeeded does not keep the row from others.
    """
    return replace(row, until=now + lease) if may_write(row, fence) else None


def may_write(row: Leased, fence: int) -> bool:
    """May results be stored by whoever holds this fence?"""
    return row.state is LeaseState.RUNNING and row.fence == fence


def release(row: Leased, fence: int) -> Leased | None:
    """Give it back with work left, as if it had not been tried: for the next to take at once."""
    return replace(_free(row), attempt=row.attempt - 1) if may_write(row, fence) else None


def leave(row: Leased, fence: int, *, is_work_left: bool) -> Leased | None:
    """Give it back, or end it where there is no work left."""
    if is_work_left:
        return release(row, fence)
    return replace(_free(row), state=LeaseState.DONE) if may_write(row, fence) else None


def expire(row: Leased, now: Instant, max_attempts: int) -> Leased | None:
    """What the sweeper does about a holder that has gone silent: the row waits again, or ends after too many of them."""
    if not is_expired(row, now):
        return None
    return replace(_free(row), state=LeaseState.READY if row.attempt < max_attempts else LeaseState.DONE)


def close(row: Leased) -> Leased | None:
    """Its work is not wanted any more: whoever holds it is shut out."""
    if row.state is LeaseState.DONE:
        return None
    return replace(_free(row), state=LeaseState.DONE, fence=row.fence + 1)


def trust_seconds(lease_seconds: float) -> float:
    """How long a holder may begin new work after a renewal *began*: shorter than the lease, by its own clock."""
    return max(lease_seconds * 0.75, lease_seconds - 15)


def is_suspicious(attempt: int) -> bool:
    """Have a row's workers vanished so often that it may be its doing? `attempt` counts the present claim."""
    return attempt > LOST_LEASES


def _taken(row: Leased, owner: str, now: Instant, lease: timedelta) -> Leased:
    return Leased(
        state=LeaseState.RUNNING, owner=owner, fence=row.fence + 1, until=now + lease, attempt=row.attempt + 1
    )


def _free(row: Leased) -> Leased:
    return replace(row, state=LeaseState.READY, owner=None, until=None)
