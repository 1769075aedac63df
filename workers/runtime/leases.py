"""Lease keeper: renews the leases of this process from one thread, on a connection of its own.

* A lease is renewed only while the engine of its model ticks, however long its steps take; a hung one is ended by its watchdog.
* A lease that the database did not confirm is lost, and its holder must stop.
* A lease that was not renewed for long, by the monotonic clock of this process, is not trusted even before it is lost.
* Rows are renewed by id, never as "all rows of this owner": a claim whose reply was lost is worked on by no thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.failpoints import Point, failpoint
from core.states import trust_seconds

log = structlog.get_logger()

Clock = Callable[[], float]

_RETRY_SECONDS: Final = 0.5


def _ignore() -> None:
    """Do nothing about a change of a lease."""


@dataclass(slots=True)
class Lease:
    """One claimed row. `is_lost` and `is_unwanted` are set once and never reset."""

    id: str
    model: str
    fence: int
    renewed_at: float
    is_lost: bool = False
    is_unwanted: bool = False
    changed: Callable[[], None] = _ignore

    def is_trusted(self, now: float, trust_seconds: float) -> bool:
        """May new work start under this lease?"""
        return not self.is_lost and now - self.renewed_at < trust_seconds


@dataclass(frozen=True, slots=True)
class Renewed:
    """A row that is still held, and whether its work was cancelled meanwhile."""

    id: str
    fence: int
    is_unwanted: bool


class Renew(Protocol):
    """Renews these rows (id to fence) in one statement and returns those that are still held."""

    def __call__(self, held: Mapping[str, int]) -> Iterable[Renewed]: ...


class LeaseKeeper:
    """The leases of one process."""

    def __init__(
        self,
        renew: Renew,
        is_alive: Callable[[str], bool],
        *,
        heartbeat_seconds: float,
        lease_seconds: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self._renew = renew
        self._is_alive = is_alive
        self._heartbeat_seconds = heartbeat_seconds
        self._trust_seconds = trust_seconds(lease_seconds)
        self._clock = clock
        self.num_lost = 0
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop renewing."""
        self._stop.set()
        self._thread.join(timeout=5)

    def hold(self, row_id: str, model: str, fence: int, changed: Callable[[], None] = _ignore) -> Lease:
        """Keep the lease of a row that was just claimed; `changed` is called in another thread when it is lost or unwanted.

        An earlier holder of the row in this process has lost its lease, as after an outage of the database.
        """
        lease = Lease(row_id, model, fence, self._clock(), changed=changed)
        with self._lock:
            previous = self._leases.get(row_id)
            self._leases[row_id] = lease
        if previous is not None and not previous.is_lost:
            previous.is_lost = True
            self.num_lost += 1
            self._notify(previous)
        return lease

    def drop(self, lease: Lease) -> None:
        """Stop renewing, and let go of the holder, which refers to its lease: the row was given back or has ended."""
        with self._lock:
            if self._leases.get(lease.id) is lease:
                del self._leases[lease.id]
        lease.changed = _ignore

    def is_trusted(self, lease: Lease) -> bool:
        """May new work start under this lease?"""
        return lease.is_trusted(self._clock(), self._trust_seconds)

    def beat(self) -> None:
        """Renew all leases once. Public so that tests need no thread."""
        started_at = self._clock()
        with self._lock:
            leases = list(self._leases.values())
        alive = {model for model in {lease.model for lease in leases} if self._is_alive(model)}
        held = [lease for lease in leases if lease.model in alive]
        if not held:
            return
        failpoint(Point.LEASES_RENEWING)
        confirmed = {row.id: row for row in self._renew({lease.id: lease.fence for lease in held})}
        failpoint(Point.LEASES_RENEWED)
        for lease in held:
            self._apply(lease, confirmed.get(lease.id), started_at)

    def _apply(self, lease: Lease, row: Renewed | None, started_at: float) -> None:
        before = (lease.is_lost, lease.is_unwanted)
        if row is None or row.fence != lease.fence:
            with self._lock:
                lease.is_lost = lease.is_lost or self._leases.get(lease.id) is lease
        else:
            lease.renewed_at = started_at
            lease.is_unwanted = lease.is_unwanted or row.is_unwanted
        if (lease.is_lost, lease.is_unwanted) != before:
            self.num_lost += lease.is_lost and not before[0]
            self._notify(lease)

    def _notify(self, lease: Lease) -> None:
        log.info("lease_changed", id=lease.id, is_lost=lease.is_lost, is_unwanted=lease.is_unwanted)
        lease.changed()

    def _run(self) -> None:
        """Renew with each heartbeat. A failed renewal is soon repeated, since other workers claim leases that expire."""
        pause = self._heartbeat_seconds
        while not self._stop.wait(pause):
            pause = min(_RETRY_SECONDS, self._heartbeat_seconds)
            try:
                self.beat()
                pause = self._heartbeat_seconds
            except SQLAlchemyError as error:
                log.warning("lease_renewal_failed", reason=type(error).__name__)
            except Exception as error:  # the edge of this thread: without it every lease would be lost
                log.error("lease_renewal_failed", exc_info=error)
