"""Shard queue: the order in which the shards of a model are claimed, which is that of `db.shards.claim_next_shard`."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

from tools.fleet_simulation.workload import HOUR, Arrival


@dataclass(slots=True, eq=False)
class Batch:
    """A batch and what has become of its lines. `returned` holds the lines that are left of shards given back."""

    number: int
    sent: Arrival
    unclaimed: int
    returned: deque[float] = field(default_factory=deque)
    open_lines: float = 0.0
    first_claim_at: float | None = None
    ended_at: float | None = None

    @property
    def expires_at(self) -> float:
        return self.sent.at + self.sent.window

    @property
    def is_claimable(self) -> bool:
        return self.ended_at is None and (self.unclaimed > 0 or bool(self.returned))


@dataclass(slots=True, eq=False)
class Shard:
    """A claimed shard, with the lines that are left of it."""

    batch: Batch
    lines_left: float


_Urgency = tuple[int, float]  # priority, falling; hour of the deadline


class ShardQueue:
    """The open batches of one model. `running` counts the running shards of each tenant, over all models."""

    def __init__(self, shard_lines: int, running: Counter[int]) -> None:
        self._shard_lines = shard_lines
        self._running = running
        self._urgencies: list[_Urgency] = []
        self._batches: dict[_Urgency, dict[int, list[tuple[float, int, Batch]]]] = defaultdict(dict)
        self.num_open = 0
        self.num_claimable = 0  # shards

    def add(self, batch: Batch) -> None:
        """Add a batch that was just prepared."""
        self.num_claimable += math.ceil(batch.unclaimed / self._shard_lines)
        self._push(batch)

    def remove(self, batch: Batch) -> None:
        """Take the shards of a batch out that has ended."""
        self.num_claimable -= math.ceil(batch.unclaimed / self._shard_lines) + len(batch.returned)
        batch.unclaimed = 0
        batch.returned.clear()

    def _push(self, batch: Batch) -> None:
        urgency = _urgency(batch)
        tenants = self._batches[urgency]
        if not tenants:
            heapq.heappush(self._urgencies, urgency)
        heapq.heappush(tenants.setdefault(batch.sent.tenant, []), (batch.expires_at, batch.number, batch))
        self.num_open += 1

    def give_back(self, shard: Shard) -> None:
        """Return a shard whose model leaves memory."""
        batch = shard.batch
        was_claimable = batch.is_claimable
        batch.returned.append(shard.lines_left)
        self.num_claimable += 1
        if not was_claimable:
            self._push(batch)

    def claim(self, now: float) -> Shard | None:
        """Take the most urgent shard: priority, hour of the deadline, fewest running shards of the tenant, deadline."""
        while self._urgencies:
            urgency = self._urgencies[0]
            tenants = self._batches[urgency]
            best: tuple[int, float, int] | None = None
            for tenant in list(tenants):
                batches = tenants[tenant]
                while batches and not batches[0][2].is_claimable:
                    heapq.heappop(batches)
                    self.num_open -= 1
                if not batches:
                    del tenants[tenant]
                    continue
                key = (self._running[tenant], batches[0][0], tenant)
                best = key if best is None else min(best, key)
            if best is None:
                heapq.heappop(self._urgencies)
                del self._batches[urgency]
                continue
            return self._take(tenants[best[2]][0][2], now)
        return None

    def priority(self) -> int | None:
        """The highest priority of batches with shards to claim; None without any."""
        for urgency in sorted(self._urgencies):
            if any(entry[2].is_claimable for entries in self._batches[urgency].values() for entry in entries):
                return -urgency[0]
        return None

    def _take(self, batch: Batch, now: float) -> Shard:
        if batch.returned:
            lines = batch.returned.popleft()
        else:
            lines = float(min(self._shard_lines, batch.unclaimed))
            batch.unclaimed -= int(lines)
        self.num_claimable -= 1
        if batch.first_claim_at is None:
            batch.first_claim_at = now
        self._running[batch.sent.tenant] += 1
        return Shard(batch, lines)


def _urgency(batch: Batch) -> _Urgency:
    return -batch.sent.priority, batch.expires_at // HOUR
