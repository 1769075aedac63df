"""Model of leases without a database: claim, renew, write, release, expire; each returns the row that it leaves.

The statements in `db.shards` and `db.jobs` are these rules in SQL, and tests run both side by side. A shard and a job are one
kind of row here. Invariants:

* a row has one holder at most: the one with the row's fence, while the row is RUNNING. A worker that trusts its lease is that
  holder, or the row was closed meanwhile;
* a fence never decreases, and each claim has its own;
* a write under any other fence than the row's is refused, and changes nothing;
* a lost lease uses up an attempt, a released one does not;
* a row that is DONE is never claimed again.

A rule that does not apply returns None, as its UPDATE returns no row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

Instant = timedelta  # since any moment, by one clock: the database's for rows, that of a process for trust


class LeaseState(StrEnum):
    """READY may be claimed, RUNNING is held, DONE has no work left."""

    READY = "ready"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """The lease of a row; `owner` and `until` are set exactly while it is RUNNING."""

    state: LeaseState = LeaseState.READY
    owner: str | None = None
    fence: int = 0
    until: Instant | None = None
    attempt: int = 0

    @property
    def num_lost(self) -> int:
        """Leases that ended without a release, before the present one."""
        return self.attempt - (1 if self.state is LeaseState.RUNNING else 0)

    def check(self) -> None:
        """Assert what is true of any row."""
        assert (self.state is LeaseState.RUNNING) == (self.owner is not None and self.until is not None)
        assert 0 <= self.attempt <= self.fence, "each attempt began with a claim"


def is_expired(row: Leased, now: Instant) -> bool:
    """True when the lease is over without a renewal."""
    return row.state is LeaseState.RUNNING and row.until is not None and row.until < now


def claim(row: Leased, owner: str, now: Instant, lease: timedelta) -> Leased | None:
    """Take a row that is READY; the new fence shuts out earlier holders."""
    return _taken(row, owner, now, lease) if row.state is LeaseState.READY else None


def take_over(row: Leased, owner: str, now: Instant, lease: timedelta) -> Leased | None:
    """Take a row with a lease that is over; its attempt stays counted."""
    return _taken(row, owner, now, lease) if is_expired(row, now) else None


def renew(row: Leased, fence: int, now: Instant, lease: timedelta) -> Leased | None:
    """Renew a lease, also late, until another worker has taken the row.

    By the fence and not by the owner: a worker that got no reply to its claim does not keep the row from others.
    """
    return replace(row, until=now + lease) if may_write(row, fence) else None


def may_write(row: Leased, fence: int) -> bool:
    """True when results may be stored under this fence."""
    return row.state is LeaseState.RUNNING and row.fence == fence


def release(row: Leased, fence: int) -> Leased | None:
    """Release a row with work left, without counting the attempt: it may be claimed at once."""
    return replace(_free(row), attempt=row.attempt - 1) if may_write(row, fence) else None


def leave(row: Leased, fence: int, *, is_work_left: bool) -> Leased | None:
    """Release a row, or end it when no work is left."""
    if is_work_left:
        return release(row, fence)
    return replace(_free(row), state=LeaseState.DONE) if may_write(row, fence) else None


def expire(row: Leased, now: Instant, max_attempts: int) -> Leased | None:
    """Sweep a row with a lease that is over: it is READY again, or ends after `max_attempts`."""
    if not is_expired(row, now):
        return None
    return replace(_free(row), state=LeaseState.READY if row.attempt < max_attempts else LeaseState.DONE)


def close(row: Leased) -> Leased | None:
    """End a row after its work was cancelled; its holder is shut out."""
    if row.state is LeaseState.DONE:
        return None
    return replace(_free(row), state=LeaseState.DONE, fence=row.fence + 1)


def _taken(row: Leased, owner: str, now: Instant, lease: timedelta) -> Leased:
    return Leased(
        state=LeaseState.RUNNING, owner=owner, fence=row.fence + 1, until=now + lease, attempt=row.attempt + 1
    )


def _free(row: Leased) -> Leased:
    return replace(row, state=LeaseState.READY, owner=None, until=None)
