"""Simulation: arrivals, claims, ends of shards, deadlines and decisions, one after the other in simulated time."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from hashlib import sha256
from typing import Final

from core.settings import Settings
from tools.fleet_simulation.device import Device, Engine, Model
from tools.fleet_simulation.shard_queue import Batch, Shard, ShardQueue
from tools.fleet_simulation.workload import Arrival
from workers.residency.policy import ResidencyPolicy
from workers.residency.spreading import most_engines
from workers.residency.types import Demand, Limits, Load, ResidentState, Retire, ServableModel

_LOOK_SECONDS: Final = 10.0  # between decisions of a device; the launcher's is 0.1, for chats, which are not simulated
_MINUTE: Final = 60.0


class _Kind(IntEnum):
    """The kind of an event; those of one moment happen in this order."""

    ARRIVAL = 0
    DEADLINE = 1
    DEVICE = 2
    LOOK = 3


@dataclass(slots=True)
class Counts:
    """What the database and the broker did, in all and in the busiest minute."""

    total: Counter[str] = field(default_factory=Counter)
    peak: Counter[str] = field(default_factory=Counter)
    _minute: float = 0.0
    _now: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, number: float, at: float) -> None:
        """Count so many of these at this time; times only grow."""
        if at - self._minute >= _MINUTE:
            self.peak = Counter({each: max(self.peak[each], self._now[each]) for each in self.peak | self._now})
            self._now.clear()
            self._minute = at // _MINUTE * _MINUTE
        self.total[name] += number  # type: ignore[assignment]  # parts of lines are counted too
        self._now[name] += number  # type: ignore[assignment]


class Simulation:
    """A fleet of equal devices. `eager` models are loaded by each device at its start, while they fit."""

    def __init__(
        self, models: list[Model], devices: int, gib: int, settings: Settings, *, replicas: int | None = None
    ) -> None:
        self._settings = settings
        self._replicas = replicas
        self._models = models
        self._by_name = {model.name: model for model in models}
        self._servable = [ServableModel(name=model.name, num_bytes=model.gib, is_eager=True) for model in models]
        limits = Limits(
            min_residence_seconds=settings.residence_seconds,
            min_residence_loads=settings.residence_loads,
            chat_patience_seconds=settings.chat_patience_seconds,
            batch_patience_seconds=settings.batch_patience_seconds,
        )
        self.devices = [Device(number, gib, ResidencyPolicy(limits)) for number in range(devices)]
        self.running = Counter[int]()
        self._first = {model.name: min(self.devices, key=partial(_rank, model.name)) for model in models}
        self._queues = {model.name: ShardQueue(settings.shard_lines, self.running) for model in models}
        self._elsewhere = Counter[str]()  # engines of each model, over all devices
        self._events: list[tuple[float, int, int, object]] = []
        self._number = 0
        self.batches: list[Batch] = []
        self.counts = Counts()
        self.most_open = 0
        self.now = 0.0

    def run(self, arrivals: Iterator[Arrival], seconds: float) -> None:
        """Simulate until this time."""
        for arrival in arrivals:
            self._schedule(arrival.at, _Kind.ARRIVAL, arrival)
        self._schedule(0.0, _Kind.LOOK, None)
        while self._events and self._events[0][0] <= seconds:
            self.now, kind, _, subject = heapq.heappop(self._events)
            match subject:
                case Arrival():
                    self._arrive(subject)
                case Batch():
                    self._expire(subject)
                case Device() if kind == _Kind.DEVICE:
                    self._act(subject)
                case (Device() as device, int() as version) if version == device.version:
                    self._act(device)
                case None:
                    self._look()
        self.now = seconds
        for device in self.devices:
            self._progress(device)

    def _schedule(self, at: float, kind: _Kind, subject: object) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, kind, self._number, subject))

    def _arrive(self, arrival: Arrival) -> None:
        """Prepare a batch: its rows are copied, and its model gets tickets."""
        batch = Batch(len(self.batches), arrival, arrival.lines, open_lines=float(arrival.lines))
        self.batches.append(batch)
        name = self._models[arrival.model].name
        self._queues[name].add(batch)
        self._schedule(batch.expires_at, _Kind.DEADLINE, batch)
        shards = math.ceil(arrival.lines / self._settings.shard_lines)
        self.counts.add("rows inserted", arrival.lines + shards, self.now)
        self.counts.add("tickets", min(shards, 2 * self._settings.batch_lanes) + 1, self.now)
        for device in self.devices:
            engine = device.engines.get(name)
            if engine is not None and len(engine.shards) < self._settings.batch_lanes:
                self._act(device)
                if not batch.unclaimed:
                    break

    def _expire(self, batch: Batch) -> None:
        """End a batch at its deadline; its running shards stop."""
        if batch.ended_at is not None:
            return
        name = self._models[batch.sent.model].name
        holders = [
            device
            for device in self.devices
            if name in device.engines and any(shard.batch is batch for shard in device.engines[name].shards)
        ]
        for device in holders:
            self._progress(device)
        if batch.ended_at is not None:
            return
        self._queues[name].remove(batch)
        batch.ended_at = self.now
        for device in holders:
            engine = device.engines[name]
            for shard in [shard for shard in engine.shards if shard.batch is batch]:
                self._release(engine, shard)
            self._act(device)

    def _act(self, device: Device) -> None:
        """Count what has ended on a device, let engines load and leave, claim shards, and schedule its next event."""
        self._progress(device)
        for engine in list(device.engines.values()):
            if engine.state is ResidentState.LOADING and engine.ready_at <= self.now:
                engine.state = ResidentState.READY
            if engine.state is ResidentState.RETIRING and engine.gone_at <= self.now:
                del device.engines[engine.model.name]
                self._elsewhere[engine.model.name] -= 1
        for engine in device.engines.values():
            while engine.state is ResidentState.READY and len(engine.shards) < self._settings.batch_lanes:
                shard = self._queues[engine.model.name].claim(self.now)
                self.counts.add("claims", 1, self.now)
                if shard is None:
                    break
                self.counts.add("rows updated", 1, self.now)
                engine.shards.append(shard)
        device.version += 1
        times = [self.now + seconds for seconds in [device.next_end()] if seconds is not None]
        times += [engine.ready_at for engine in device.engines.values() if engine.state is ResidentState.LOADING]
        times += [engine.gone_at for engine in device.engines.values() if engine.state is ResidentState.RETIRING]
        if times:
            self._schedule(max(min(times), self.now), _Kind.DEVICE, (device, device.version))

    def _progress(self, device: Device) -> None:
        """Move the shards of a device on to the present, and end those that are done."""
        seconds, lines = self.now - device.at, device.advance(self.now)
        if lines:
            ends_of_groups = max(lines / self._settings.commit_lines, seconds / self._settings.commit_seconds)
            self.counts.add("rows updated", lines, self.now)
            self.counts.add("commits of results", min(lines, ends_of_groups), self.now)
        for engine in device.engines.values():
            for shard in [shard for shard in engine.shards if shard.lines_left < 1e-6]:
                self._release(engine, shard)
                batch = shard.batch
                if batch.ended_at is None and batch.open_lines < 1e-3:
                    batch.ended_at, batch.open_lines = self.now, 0.0
                    self.counts.add("tickets", 1, self.now)

    def _release(self, engine: Engine, shard: Shard) -> None:
        engine.shards.remove(shard)
        engine.last_used_at = self.now
        self.running[shard.batch.sent.tenant] -= 1
        self.counts.add("rows updated", 1, self.now)

    def _look(self) -> None:
        """Let each device decide, and the sweeper send its tickets."""
        waiting = {name: queue.priority() for name, queue in self._queues.items()}
        waiting = {name: priority for name, priority in waiting.items() if priority is not None}
        self.most_open = max(self.most_open, sum(queue.num_open for queue in self._queues.values()))
        in_memory = sum(bool(self._elsewhere[name]) for name in waiting)
        self.counts.add("tickets", in_memory * _LOOK_SECONDS / self._settings.sweep_seconds, self.now)
        for device in self.devices:
            demands = [
                Demand(name=name, batch_priority=priority, is_further=is_further)
                for name, priority in waiting.items()
                if name not in device.engines and (is_further := self._help(device, name, waiting)) is not None
            ]
            if demands or self.now == 0.0:
                own = (name for name in waiting if name in device.engines)
                self._decide(device, [*demands, *(Demand(name=name, batch_priority=waiting[name]) for name in own)])
        self._schedule(self.now + _LOOK_SECONDS, _Kind.LOOK, None)

    def _decide(self, device: Device, demands: list[Demand]) -> None:
        servable = {model.name: model for model in self._servable}
        while True:
            residents = [engine.resident(self._elsewhere[name] > 1) for name, engine in device.engines.items()]
            match device.policy.decide(self.now, servable, residents, demands, device.gib):
                case Load(name=name):
                    self._load(device, name)
                    if self.now > 0.0:
                        return
                case Retire(name=name):
                    self._retire(device, device.engines[name])
                    return
                case None:
                    return

    def _help(self, device: Device, name: str, waiting: Collection[str]) -> bool | None:
        """Is a waiting model to be loaded here, by the rules of `workers.launcher.residency_control`?

        True: as a further engine; None: no.
        """
        if (engines := self._elsewhere[name]) > 0:
            shards, lanes = self._queues[name].num_claimable, self._settings.batch_lanes
            has_work = any(engine.shards or each in waiting for each, engine in device.engines.items())
            return True if not has_work and engines < most_engines(shards, lanes, self._replicas) else None
        need = self._by_name[name].gib
        is_first = device is self._first[name] and not any(each.free_gib >= need for each in self.devices)
        return False if device.free_gib >= need or is_first else None

    def _load(self, device: Device, name: str) -> None:
        model = self._by_name[name]
        at_start = self.now == 0.0  # engines of the start load side by side
        engine = Engine(
            model=model,
            state=ResidentState.READY if at_start else ResidentState.LOADING,
            ready_at=self.now + (0.0 if at_start else model.load_seconds),
            last_used_at=self.now,
        )
        device.engines[name] = engine
        device.num_loads += not at_start
        self._elsewhere[name] += 1
        self._act(device)

    def _retire(self, device: Device, engine: Engine) -> None:
        """Drain an engine: its lines end, and what is left of its shards goes back."""
        self._progress(device)
        slots = 2 * self._settings.batch_lanes
        engine.state = ResidentState.RETIRING
        engine.gone_at = self.now + (slots * engine.model.line_seconds if engine.shards else 0.0)
        for shard in list(engine.shards):
            self._release(engine, shard)
            self._queues[engine.model.name].give_back(shard)
        self._act(device)


def _rank(model: str, device: Device) -> bytes:
    return sha256(f"{model} {device.number}".encode()).digest()
