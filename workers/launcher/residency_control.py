"""Residency control: brings the engines of a launcher to what its model files, the demand and the policy want.

`advance` is called between ten times a second and every two seconds by the launcher's main thread and never waits.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from core.counters import CounterName
from core.states import EngineState
from db.model_requests import finish_load
from workers.launcher.consumer_processes import KINDS, ConsumerProcesses
from workers.launcher.engines.engine_process import EngineProcess
from workers.launcher.engines.engine_reports import EngineReports
from workers.launcher.engines.engines import Engines, Loaded, LoadFailed, Stopped
from workers.launcher.servable_models import ServableModels
from workers.residency.demand import DemandReader
from workers.residency.link import LinkServer
from workers.residency.policy import ResidencyPolicy
from workers.residency.spreading import most_engines
from workers.residency.types import Demand, Load, Resident, ResidentState, Retire

log = structlog.get_logger()

_NO_ROOM: Final = "it is pinned, but there is no room for it beside the other pinned models, so it may be unloaded"
_YIELD_SECONDS: Final = 2.0  # for which a launcher with free memory may take what this one would have to make room for


class ResidencyControl:
    """The models of one device.

    `lanes` are the shards of a model that a consumer runs at a time.
    `on_load(model, seconds)` is called after each load, `on_failure(model, reason)` when callers cannot be served.
    """

    def __init__(
        self,
        launcher_id: str,
        servable: ServableModels,
        engines: Engines,
        policy: ResidencyPolicy,
        link: LinkServer,
        reports: EngineReports,
        demand: DemandReader,
        *,
        lanes: int,
        on_load: Callable[[str, float], None] = lambda *_: None,
        on_failure: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._launcher_id = launcher_id
        self._servable = servable
        self._engines = engines
        self._policy = policy
        self._link = link
        self._reports = reports
        self._demand = demand
        self._lanes = lanes
        self._on_load = on_load
        self._on_failure = on_failure
        self._reserving: str | None = None
        self._reloads: dict[str, float] = {}  # models that were in memory when their files changed, and since when
        self._failed_at: dict[str, float] = {}
        self._too_large: dict[str, str] = {}  # why a model can never fit; empty if it can
        self.failures: dict[str, str] = {}  # the last failed load of each model, for a worker that cannot start

    def load_eager(self, now: float) -> None:
        """Start the eager models in order while memory lasts, all at once. Raises ConfigError if the pinned ones do not fit."""
        self._follow_files(now)
        for name in self._servable.begin_eager():
            self._policy.note_begun(name)
            self._load(name, now)

    def are_eager_served(self, consumers: ConsumerProcesses) -> bool:
        """Do the consumers take work of all models that were started?"""
        return len(self._engines.held_by_all(consumers, KINDS)) == len(self._engines.all())

    @property
    def is_hopeless(self) -> bool:
        """Is there no model that is in memory, or that could be loaded?"""
        return bool(self.failures) and all(self._reports.has_failed(name) for name in self._reports.models())

    @property
    def has_demand(self) -> bool:
        """Does anything wait for a model, in memory or not?"""
        waiting = self._demand.waiting
        return bool(waiting.chats or waiting.batches or waiting.admins)

    def advance(self, consumers: ConsumerProcesses, now: float, *, decides: bool = True) -> None:
        """Follow files, pins, engines and consumers; with `decides`, also begin what the policy wants next."""
        self._servable.pin(self._demand.waiting.pins)
        self._follow_files(now)
        for event in self._engines.advance(consumers, now):
            match event:
                case Loaded(engine=engine):
                    self._loaded(engine)
                case LoadFailed(engine=engine, report=report):
                    self._failed(engine.name, report, now)
                case Stopped(engine=engine):
                    self._stopped(engine)
        if decides:
            self._follow_admins()
            self._decide(now)
        self._link.publish(self._engines.linked(), now)
        self._engines.published(self._link.revision)
        self._reports.set_held(self._engines.held_by_all(consumers, KINDS))

    def _follow_files(self, now: float) -> None:
        """Take over changed model files: engines of other ones are to leave."""
        if not self._servable.refresh():
            return
        names = self._servable.names()
        for name in names:
            self._reports.add(name)
            self._reports.set_remark(name, _NO_ROOM if name in self._servable.pins_without_room else None)
        for name in self._servable.changed:
            self._policy.forget(name)
            self._too_large.pop(name, None)
            if name not in self._engines:
                self._reports.set_unloaded(name)
        for engine in self._engines.all():
            if engine.name in names and self._servable.is_same(engine.plan):
                continue
            engine.is_unwanted = True
            if engine.name in names:
                self._reloads[engine.name] = now
        for name in self._reports.models() - names - {engine.name for engine in self._engines.all()}:
            self._reports.remove(name)
        for name in names - {engine.name for engine in self._engines.all()}:
            reason = self._servable.room_problem(name)
            if reason and self._too_large.get(name) != reason:
                self._reports.fail(name, reason)
                self._on_failure(name, reason)
            elif not reason and self._too_large.get(name):
                self._reports.set_unloaded(name)
            self._too_large[name] = reason

    def _follow_admins(self) -> None:
        """Let engines leave that an admin unloads, and end requests to load that are served or refused."""
        for name, request in self._demand.waiting.admins.items():
            engine = self._engines.get(name)
            if engine is not None and request.unload_since is not None and engine.started_at < request.unload_since:
                engine.is_unwanted = True
                self._reloads.pop(name, None)
            if request.load_at is None or name not in self._servable:
                continue
            is_served = engine is not None and engine.state is ResidentState.READY and not engine.is_unwanted
            if is_served or self._servable.room_problem(name):
                self._finish_request(name)

    def _finish_request(self, name: str) -> None:
        request = self._demand.waiting.admins.get(name)
        if request is not None and (load_at := request.load_at) is not None:
            self._demand.write(finish_load(name, load_at))

    def _decide(self, now: float) -> None:
        if (name := self._reserving) is not None:
            if (is_granted := self._demand.reservations.pop(name, None)) is None:
                return
            self._reserving = None
            if is_granted and name in self._servable and self._has_room(name):
                self._load(name, now)
            elif self._reports.state(name) is EngineState.LOADING:
                self._reports.set_unloaded(name)
            return
        for name in self._demand.waiting.admins.keys() & self._servable.names():
            request = self._demand.waiting.admins[name]
            if request.load_since is not None and request.load_since > self._failed_at.get(name, 0.0):
                self._policy.clear_failures(name)
        residents = [
            dataclasses.replace(each, is_elsewhere=self._demand.waiting.is_elsewhere(each.name))
            for each in self._engines.residents()
        ]
        demands = self._demands(now, residents)
        action = self._policy.decide(now, self._servable.models(), residents, demands, self._servable.budget)
        match action:
            case Load(name=name) if self._is_local(name):
                self._load(name, now)
            case Load(name=name):
                self._reserving = name
                num_bytes = self._servable.num_bytes(name)
                self._reports.begin_load(name, num_bytes, quietly=True)
                self._demand.reserve(name, num_bytes, most=self._most_engines(name, demands))
            case Retire(name=name, how=how):
                self._engines.retire(name, how)

    def _is_local(self, name: str) -> bool:
        """Is the model loaded here whatever other launchers do: it is reloaded, or eager without a limit of replicas?"""
        return name in self._reloads or not (self._is_waited_for(name) or self._servable.replicas(name))

    def _is_waited_for(self, name: str) -> bool:
        waiting = self._demand.waiting
        return name in waiting.chats or name in waiting.batches or name in waiting.admins

    def _most_engines(self, name: str, demands: Sequence[Demand]) -> int | None:
        """How many launchers may have a model, whatever is the reason to load it here; None: any number."""
        if any(each.name == name and each.is_further for each in demands):
            shards = self._demand.waiting.shards.get(name, 0)
            return most_engines(shards, self._lanes, self._servable.replicas(name))
        return 1 if self._is_waited_for(name) else self._servable.replicas(name)

    def _demands(self, now: float, residents: Sequence[Resident]) -> list[Demand]:
        """The demands that this launcher is to serve; those of models in memory too."""
        waiting, demands = self._demand.waiting, []
        has_work = any(each.num_chats or each.num_lines or self._is_waited_for(each.name) for each in residents)
        for name in self._servable.names():
            since = [waiting.chats.get(name), self._reloads.get(name)]
            priority, is_further = waiting.batches.get(name), False
            if name not in self._engines and not self._is_ours(name, now):
                is_further = not has_work and self._may_help(name)
                since, priority = [self._reloads.get(name)], priority if is_further else None
            if (request := waiting.admins.get(name)) is not None and request.load_at is not None:
                since.append(request.load_since)
            known = [each for each in since if each is not None]
            if known or priority is not None:
                waiting_since = min(known, default=None)
                demands.append(
                    Demand(name=name, waiting_since=waiting_since, batch_priority=priority, is_further=is_further)
                )
        return demands

    def _may_help(self, name: str) -> bool:
        """Is more left of the model's batches than the launchers that have it can begin?"""
        waiting = self._demand.waiting
        others, shards = waiting.num_elsewhere(name), waiting.shards.get(name, 0)
        return 0 < others < most_engines(shards, self._lanes, self._servable.replicas(name))

    def _is_ours(self, name: str, now: float) -> bool:
        """Is a waiting model to be loaded here: no other launcher has it, and this one has room or is the one to make it?"""
        waiting = self._demand.waiting
        if waiting.is_elsewhere(name):
            return False
        others = [other for other, state in waiting.others.get(name, {}).items() if state is EngineState.UNLOADED]
        if not others or self._has_room(name):
            return True
        first = min([self._launcher_id, *others], key=lambda each: hashlib.sha256(f"{name} {each}".encode()).digest())
        since = waiting.chats.get(name)
        return first == self._launcher_id and (since is None or now - since > _YIELD_SECONDS)

    def _has_room(self, name: str) -> bool:
        return self._servable.num_bytes(name) <= self._free_bytes()

    def _free_bytes(self) -> int:
        return self._servable.budget - sum(engine.plan.num_bytes for engine in self._engines.all())

    def _load(self, name: str, now: float) -> None:
        resident = {engine.name for engine in self._engines.all()}
        plan = self._servable.plan(name, self._free_bytes(), resident)
        self._reports.begin_load(name, plan.num_bytes)
        engine = self._engines.start(plan, now)
        waiting = self._demand.waiting
        is_asked_for = name in waiting.admins and waiting.admins[name].load_at is not None
        engine.is_for_chat = is_asked_for or name in waiting.chats or name in self._reloads
        self._reloads.pop(name, None)

    def _loaded(self, engine: EngineProcess) -> None:
        name = engine.name
        self._policy.clear_failures(name)
        self.failures.pop(name, None)
        self._reports.counters.add(CounterName.MODEL_LOADS, name)
        self._reports.counters.add(CounterName.MODEL_LOAD_MILLISECONDS, name, round(engine.load_seconds * 1000))
        log.info("model_loaded", model=name, load=engine.load_id, seconds=round(engine.load_seconds, 2))
        self._finish_request(name)
        self._on_load(name, engine.load_seconds)

    def _failed(self, name: str, report: str, now: float) -> None:
        self._policy.record_failure(name, now)
        self._failed_at[name] = now
        self.failures[name] = report
        self._reports.counters.add(CounterName.MODEL_LOAD_FAILURES, name)
        log.error("model_not_loaded", model=name, reason=report)
        self._finish_request(name)
        self._on_failure(name, self._reports.reason(name))

    def _stopped(self, engine: EngineProcess) -> None:
        name = engine.name
        self._reports.counters.add(CounterName.MODEL_UNLOADS, name)
        log.info("model_unloaded", model=name, load=engine.load_id)
        if name in self._servable.names():
            self._reports.set_unloaded(name)
        else:
            self._reports.remove(name)
