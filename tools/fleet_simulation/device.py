"""A device: its engines, the shards that run in them, and its memory. Its engines share its speed evenly."""

from __future__ import annotations

from dataclasses import dataclass, field

from tools.fleet_simulation.shard_queue import Shard
from workers.residency.policy import ResidencyPolicy
from workers.residency.types import Resident, ResidentState, RetireHow


@dataclass(frozen=True, slots=True)
class Model:
    """A model: its memory in GiB, the device seconds of a line, and the seconds that it takes to load."""

    name: str
    gib: int
    line_seconds: float
    load_seconds: float


@dataclass(slots=True, eq=False)
class Engine:
    """A model in the memory of a device, or on its way there or out."""

    model: Model
    state: ResidentState
    ready_at: float
    last_used_at: float
    gone_at: float = 0.0
    shards: list[Shard] = field(default_factory=list)

    def resident(self, is_elsewhere: bool) -> Resident:
        """The engine as the policy sees it; `is_elsewhere`: another device has its model too."""
        return Resident(
            name=self.model.name,
            num_bytes=self.model.gib,
            state=self.state,
            ready_at=self.ready_at,
            load_seconds=self.model.load_seconds,
            num_lines=len(self.shards),
            last_used_at=self.last_used_at,
            is_elsewhere=is_elsewhere,
            retiring=RetireHow.DRAIN if self.state is ResidentState.RETIRING else None,
        )


@dataclass(slots=True, eq=False)
class Device:
    """One device under its own policy. `version` tells which of its scheduled events is the latest."""

    number: int
    gib: int
    policy: ResidencyPolicy
    engines: dict[str, Engine] = field(default_factory=dict)
    at: float = 0.0
    version: int = 0
    busy_seconds: float = 0.0
    num_loads: int = 0

    @property
    def free_gib(self) -> int:
        """Memory that no engine has."""
        return self.gib - sum(engine.model.gib for engine in self.engines.values())

    def advance(self, now: float) -> float:
        """Let the running shards go on until `now`, and return the lines that ended."""
        seconds, ended = now - self.at, 0.0
        self.at = now
        working = [engine for engine in self.engines.values() if engine.shards]
        for engine in working:
            lines = seconds / (engine.model.line_seconds * len(working) * len(engine.shards))
            for shard in engine.shards:
                done = min(lines, shard.lines_left)
                shard.lines_left -= done
                shard.batch.open_lines -= done
                ended += done
        if working:
            self.busy_seconds += seconds
        return ended

    def next_end(self) -> float | None:
        """Seconds until the first of its shards ends; None without any."""
        working = [engine for engine in self.engines.values() if engine.shards]
        return min(
            (
                shard.lines_left * engine.model.line_seconds * len(working) * len(engine.shards)
                for engine in working
                for shard in engine.shards
            ),
            default=None,
        )
