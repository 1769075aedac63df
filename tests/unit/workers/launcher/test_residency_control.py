"""Residency control: files, demand and the policy become loads and retirements of engines, which a test scripts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from core.cpu_cores import Cores
from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.models.live_catalog import LiveCatalog
from core.settings import load_settings
from core.states import EngineState
from engine.process.protocol import EngineInfo
from workers.launcher.engines.engine_process import LoadPlan
from workers.launcher.engines.engine_reports import EngineReports
from workers.launcher.engines.engines import Event, Loaded, LoadFailed, Stopped
from workers.launcher.residency_control import ResidencyControl
from workers.launcher.servable_models import ServableModels
from workers.residency.demand import AdminRequest, Waiting
from workers.residency.policy import ResidencyPolicy
from workers.residency.types import Resident, ResidentState, RetireHow

CPU = Device(name="cpu", kind=DeviceKind.CPU)
INFO = EngineInfo(model="m", build="b", context_size=64, slots=4, num_vocab=9, template_hash="h")


class Engine:
    """One load, which the test moves on."""

    load_id = "load"

    def __init__(self, plan: LoadPlan, now: float) -> None:
        self.plan, self.name, self.started_at = plan, plan.model.name, now
        self.state, self.retiring = ResidentState.LOADING, None
        self.is_unwanted = self.is_for_chat = False
        self.load_seconds = 1.0

    def resident(self) -> Resident:
        return Resident(
            name=self.name,
            num_bytes=self.plan.num_bytes,
            state=self.state,
            is_unwanted=self.is_unwanted,
            retiring=self.retiring,
            ready_at=self.started_at,
        )


class Engines:
    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}
        self.events: list[Event] = []
        self.retired: list[tuple[str, str]] = []

    def __contains__(self, name: str) -> bool:
        return name in self.engines

    def get(self, name: str) -> Engine | None:
        return self.engines.get(name)

    def all(self) -> list[Engine]:
        return list(self.engines.values())

    def start(self, plan: LoadPlan, now: float) -> Engine:
        self.engines[plan.model.name] = Engine(plan, now)
        return self.engines[plan.model.name]

    def retire(self, name: str, how: RetireHow) -> None:
        self.retired.append((name, str(how)))
        self.engines[name].state = ResidentState.RETIRING

    def advance(self, *_: Any) -> list[Event]:
        events, self.events = self.events, []
        return events

    def residents(self) -> list[Resident]:
        return [engine.resident() for engine in self.all()]

    def linked(self) -> list[Any]:
        return []

    def published(self, _: int) -> None: ...

    def held_by_all(self, *_: Any) -> list[str]:
        return [engine.name for engine in self.all() if engine.state is ResidentState.READY]


class Demand:
    def __init__(self) -> None:
        self.waiting = Waiting()
        self.reservations: dict[str, bool] = {}
        self.reserved: list[str] = []
        self.most: list[int | None] = []
        self.written: list[Any] = []
        self.is_granted: bool | None = True

    def reserve(self, model: str, _: int, *, most: int | None) -> None:
        self.reserved.append(model)
        self.most.append(most)
        if self.is_granted is not None:
            self.reservations[model] = self.is_granted

    def write(self, statement: Any) -> None:
        self.written.append(statement)


class Link:
    revision = 1

    def publish(self, *_: Any) -> None: ...


class Bench:
    """Models a, b and c of 100 MiB; two fit."""

    def __init__(self, path: Path) -> None:
        self.folder = path / "models"
        self.folder.mkdir()
        for name in "abc":
            self.write(name)
        self.catalog = LiveCatalog(self.folder)
        self.settings = load_settings(models_dir=self.folder, state_dir=path, device_memory="200MiB")
        self.models = ServableModels(self.settings, self.catalog, (), CPU, [CPU], Cores(cpus=((0,),)))
        self.engines, self.demand, self.reports = Engines(), Demand(), EngineReports()
        self.failed: list[tuple[str, str]] = []
        self.loads: list[str] = []
        self.control = ResidencyControl(
            "me",
            self.models,
            self.engines,  # type: ignore[arg-type]
            ResidencyPolicy(),
            Link(),  # type: ignore[arg-type]
            self.reports,
            self.demand,  # type: ignore[arg-type]
            lanes=2,
            on_load=lambda model, _: self.loads.append(model),
            on_failure=lambda model, reason: self.failed.append((model, reason)),
        )
        self.now = 1000.0
        self.control.load_eager(self.now)

    def write(self, name: str, more: str = "", size: str = "100MiB") -> None:
        (self.folder / f"{name}.yaml").write_text(f"name: {name}\nbackend: fake\nmemory_bytes: {size}\n{more}")

    def turn(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.control.advance(None, self.now)  # type: ignore[arg-type]

    def change_files(self) -> None:
        self.catalog.refresh()
        self.models.files_changed()
        self.turn()

    def answer(self, *names: str) -> None:
        """Let engines answer for the first time."""
        for name in names:
            engine = self.engines.engines[name]
            engine.state = ResidentState.READY
            self.reports.set_ready(name, INFO)
            self.engines.events.append(Loaded(engine))  # type: ignore[arg-type]
        self.turn()

    def stop(self, name: str) -> None:
        self.engines.events.append(Stopped(self.engines.engines.pop(name)))  # type: ignore[arg-type]
        self.turn()

    def fail(self, name: str, reason: str) -> None:
        engine = self.engines.engines.pop(name)
        self.reports.fail(name, reason)
        self.engines.events.append(LoadFailed(engine, "report"))  # type: ignore[arg-type]
        self.turn()

    def state(self, name: str) -> EngineState:
        return self.reports.state(name)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.answer("a", "b")
    return made


def test_the_eager_models_load_side_by_side_while_memory_lasts(bench: Bench) -> None:
    assert list(bench.engines.engines) == bench.loads == ["a", "b"]
    assert (bench.state("a"), bench.state("c")) == (EngineState.READY, EngineState.UNLOADED)


def test_a_waiting_chat_makes_room_then_reserves_and_loads(bench: Bench) -> None:
    bench.demand.waiting = Waiting(chats={"c": bench.now})
    bench.turn()
    assert bench.engines.retired == [("a", "drain")]
    assert bench.demand.reserved == []
    bench.stop("a")
    assert bench.state("a") is EngineState.UNLOADED
    assert bench.demand.reserved == ["c"]
    bench.turn()
    assert bench.engines.engines["c"].is_for_chat
    assert bench.state("c") is EngineState.LOADING


def test_a_model_that_another_launcher_reserves_is_not_loaded_here(bench: Bench) -> None:
    bench.engines.engines.pop("a")
    bench.reports.set_unloaded("a")
    bench.demand.is_granted = None
    bench.demand.waiting = Waiting(chats={"c": bench.now})
    bench.turn()
    bench.turn()
    assert bench.demand.reserved == ["c"], "it waits for the answer"
    bench.demand.reservations["c"] = False
    bench.demand.waiting = Waiting(chats={"c": bench.now}, others={"c": {"other": EngineState.LOADING}})
    bench.turn()
    bench.turn()
    assert "c" not in bench.engines
    assert bench.state("c") is EngineState.UNLOADED
    assert bench.demand.reserved == ["c"]


@pytest.mark.parametrize("has_room", [True, False])
def test_among_several_launchers_those_with_room_come_first(bench: Bench, has_room: bool) -> None:
    if has_room:
        bench.engines.engines.pop("a")
    others = {"c": {f"launcher-{number}": EngineState.UNLOADED for number in range(50)}}
    bench.demand.waiting = Waiting(chats={"c": bench.now}, others=others)
    bench.turn()
    assert bench.demand.reserved == (["c"] if has_room else [])
    assert bench.engines.retired == []


def helping(bench: Bench, shards: int, engines: int = 1, **waiting: Any) -> list[int | None]:
    """Let batches wait for `c`, which other launchers have in memory; the limits of the loads that are reserved."""
    others = {"c": {f"launcher-{number}": EngineState.READY for number in range(engines)}}
    bench.demand.waiting = Waiting(batches={"c": 0}, shards={"c": shards}, others=others, **waiting)
    bench.turn(100)
    bench.turn()
    return bench.demand.most


def test_a_device_without_work_helps_those_that_have_more_shards_than_they_can_begin(bench: Bench) -> None:
    bench.engines.engines.pop("a")
    assert helping(bench, shards=3) == [], "one engine has two lanes, and the third shard is soon taken"
    assert helping(bench, shards=9) == [4]
    assert "c" in bench.engines


def test_a_further_engine_is_within_the_replicas_of_its_model(bench: Bench) -> None:
    bench.write("c", "replicas: 2\n")
    bench.change_files()
    bench.engines.engines.pop("a")
    assert helping(bench, shards=100, engines=2) == []
    assert helping(bench, shards=100, engines=1) == [2]


def test_a_device_with_work_does_not_help(bench: Bench) -> None:
    bench.engines.engines.pop("a")
    others = {"c": {"other": EngineState.READY}}
    bench.demand.waiting = Waiting(batches={"b": 0, "c": 0}, shards={"b": 1, "c": 100}, others=others)
    bench.turn(100)
    assert bench.demand.reserved == []


def test_a_further_engine_takes_only_the_place_of_a_model_that_another_device_has(bench: Bench) -> None:
    assert helping(bench, shards=100) == []
    assert bench.engines.retired == []
    others = {name: {"other": EngineState.READY} for name in "bc"}
    bench.demand.waiting = Waiting(batches={"c": 0}, shards={"c": 100}, others=others)
    bench.turn(1000)  # beyond the patience of a batch too
    assert bench.engines.retired == [("b", "drain")]


def test_chats_do_not_load_a_model_that_another_device_has(bench: Bench) -> None:
    bench.engines.engines.pop("a")
    bench.demand.waiting = Waiting(chats={"c": bench.now}, others={"c": {"other": EngineState.READY}})
    bench.turn(100)
    assert bench.demand.reserved == []


def test_a_changed_file_drains_its_engine_and_loads_it_again(bench: Bench) -> None:
    bench.write("a", "slots: 2\n")
    bench.change_files()
    assert bench.engines.retired == [("a", "drain")]
    bench.stop("a")
    assert bench.engines.engines["a"].plan.config.slots == 2
    assert bench.demand.reserved == [], "it was in memory: nobody is asked"
    assert not bench.engines.engines["b"].is_unwanted


def test_a_removed_file_drains_its_engine_and_takes_it_off_the_reports(bench: Bench) -> None:
    (bench.folder / "a.yaml").unlink()
    bench.change_files()
    assert bench.engines.retired == [("a", "drain")]
    bench.stop("a")
    assert bench.reports.models() == {"b", "c"}


def test_a_model_that_fails_fails_its_callers_and_is_tried_again_when_its_file_changes(bench: Bench) -> None:
    bench.engines.engines.pop("a")
    bench.demand.waiting = Waiting(chats={"c": bench.now})
    bench.turn()
    bench.turn()
    bench.fail("c", "its file is no model")
    assert bench.failed == [("c", "its file is no model")]
    assert bench.state("c") is EngineState.FAILED
    bench.turn()
    assert bench.demand.reserved == ["c"], "not before its pause is over"
    bench.write("c", "slots: 2\n")
    bench.change_files()
    bench.turn()
    assert bench.demand.reserved == ["c", "c"]


def test_a_model_that_can_never_fit_fails_its_callers_with_the_numbers(bench: Bench) -> None:
    bench.write("c", size="300MiB")
    bench.change_files()
    reason = "it needs 300 MiB of memory, and cpu has 200 MiB for models"
    assert bench.failed == [("c", reason)]
    assert bench.state("c") is EngineState.FAILED
    bench.write("c")
    bench.change_files()
    assert bench.state("c") is EngineState.UNLOADED


def test_an_admin_unloads_and_reloads_a_model(bench: Bench) -> None:
    unload = AdminRequest(load_at=None, load_since=None, unload_since=bench.now)
    bench.demand.waiting = Waiting(admins={"a": unload})
    bench.turn()
    assert bench.engines.retired == [("a", "drain")]
    bench.stop("a")
    bench.turn()
    assert "a" not in bench.engines, "an eager model that an admin has unloaded stays out"
    load = AdminRequest(
        load_at=datetime(2026, 1, 1, tzinfo=UTC), load_since=bench.now, unload_since=unload.unload_since
    )
    bench.demand.waiting = Waiting(admins={"a": load})
    bench.turn()
    bench.turn()
    bench.answer("a")
    assert "a" in bench.engines
    assert bench.demand.written, "the request is finished"
    assert not bench.engines.engines["a"].is_unwanted, "it was loaded after the request to unload"
    assert bench.engines.engines["a"].is_for_chat, "a batch does not take its place at once"


def test_all_models_failed_is_hopeless_and_one_that_may_load_is_not(bench: Bench) -> None:
    assert not bench.control.is_hopeless
    checks: list[Callable[[], None]] = [lambda: bench.fail("a", "x"), lambda: bench.fail("b", "x")]
    for check in checks:
        check()
    assert not bench.control.is_hopeless, "c may still be loaded"
    bench.reports.fail("c", "x")
    assert bench.control.is_hopeless


def pinned(bench: Bench) -> list[str]:
    return sorted(name for name, model in bench.models.models().items() if model.is_pinned)


def test_a_model_that_an_admin_pins_makes_room_loads_and_stays_until_it_is_unpinned(bench: Bench) -> None:
    bench.demand.waiting = Waiting(pins=("c",))
    bench.turn(100)
    assert bench.engines.retired == [("a", "drain")]
    bench.stop("a")
    bench.turn()
    bench.answer("c")
    assert pinned(bench) == ["c"]
    bench.demand.waiting = Waiting(pins=("c",), chats={"a": bench.now})
    bench.turn(100)
    assert bench.engines.retired == [("a", "drain"), ("b", "drain")], "b leaves, though it was loaded later"
    bench.demand.waiting = Waiting()
    bench.turn()
    assert pinned(bench) == []


def test_a_pin_that_would_keep_an_older_pin_from_loading_is_not_kept_and_the_model_has_a_warning(bench: Bench) -> None:
    bench.write("a", "pinned: true\n")
    bench.demand.waiting = Waiting(pins=("b", "gone", "c"))
    bench.change_files()
    assert pinned(bench) == ["a", "b"], "c does not fit beside them"
    warnings = {engine.model: engine.warning for engine in bench.reports.status().engines}
    assert [warnings["a"], warnings["b"]] == [None, None]
    assert "no room for it beside the other pinned models" in (warnings["c"] or "")
    bench.demand.waiting = Waiting(pins=("c",))
    bench.turn()
    assert pinned(bench) == ["a", "c"]
    assert {engine.warning for engine in bench.reports.status().engines} == {None}
