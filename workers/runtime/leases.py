"""Leases: what this process holds, renewed by one thread on a connection of its own.

Knows when a lease was last renewed by its own monotonic clock, and nothing of what is done under it. The rules:
a lease is renewed only for models whose engine still ticks (a hung decode must lose its work to others); a lease the database
did not confirm is lost, and its holder must stop; a lease not renewed for long is not trusted even before that is known.
Rows are renewed by name, never as "all that is mine": a claim whose answer got lost on its way here has nobody who works on it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.failpoints import Point, failpoint
from core.lease_policy import trust_seconds

log = structlog.get_logger()

Clock = Callable[[], float]

_AGAIN_SECONDS: Final = 0.5


@dataclass(slots=True)
class Lease:
    """One claimed row. `is_lost` and `is_unwanted` are set once and never taken back."""

    id: str
    model: str
    fence: int
    renewed_at: float
    is_lost: bool = False
    is_unwanted: bool = False
    changed: Callable[[], None] = field(default=lambda: None)

    def is_trusted(self, now: float, trust_seconds: float) -> bool:
        """May new work be begun under this lease?"""
        return not self.is_lost and now - self.renewed_at < trust_seconds


@dataclass(frozen=True, slots=True)
class Renewed:
    """A row the database says is still held, and whether its work is still wanted."""

    id: str
    fence: int
    is_unwanted: bool


class Renew(Protocol):
    """Renews these rows (id to fence) in one statement; says which of them are still held."""

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
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def close(self) -> None:
        """Stop renewing."""
        self._stop.set()
        self._thread.join(timeout=5)

    def hold(self, row_id: str, model: str, fence: int, changed: Callable[[], None] = lambda: None) -> Lease:
        """A row was just claimed; `changed` is called when the lease is lost or unwanted, from another thread.

        Whoever held it here before was silent for too long, as after an outage of the database, and has lost it.
        """
        lease = Lease(row_id, model, fence, self._clock(), changed=changed)
        with self._lock:
            before = self._leases.get(row_id)
            self._leases[row_id] = lease
        if before is not None and not before.is_lost:
            before.is_lost = True
            self.num_lost += 1
            self._tell(before)
        return lease

    def drop(self, lease: Lease) -> None:
        """The row was given back or ended."""
        with self._lock:
            if self._leases.get(lease.id) is lease:
                del self._leases[lease.id]

    def is_trusted(self, lease: Lease) -> bool:
        """May new work be begun under this lease?"""
        return lease.is_trusted(self._clock(), self._trust_seconds)

    def beat(self) -> None:
        """Renew once. Public so that tests need no thread."""
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
        was = (lease.is_lost, lease.is_unwanted)
        if row is None or row.fence != lease.fence:
            with self._lock:
                lease.is_lost = lease.is_lost or self._leases.get(lease.id) is lease
        else:
            lease.renewed_at = started_at
            lease.is_unwanted = lease.is_unwanted or row.is_unwanted
        if (lease.is_lost, lease.is_unwanted) != was:
            self.num_lost += lease.is_lost and not was[0]
            self._tell(lease)

    def _tell(self, lease: Lease) -> None:
        log.info("lease_changed", id=lease.id, is_lost=lease.is_lost, is_unwanted=lease.is_unwanted)
        lease.changed()

    def _run(self) -> None:
        """One that failed is soon made up for: behind an outage, others look for leases that have run out."""
        pause = self._heartbeat_seconds
        while not self._stop.wait(pause):
            pause = min(_AGAIN_SECONDS, self._heartbeat_seconds)
            try:
                self.beat()
                pause = self._heartbeat_seconds
            except SQLAlchemyError as error:
                log.warning("heartbeat_failed", reason=type(error).__name__)
            except Exception as error:  # the edge of this thread: without it every lease would be lost
                log.error("heartbeat_failed", exc_info=error)
