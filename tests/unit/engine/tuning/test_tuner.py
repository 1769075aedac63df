"""A tuner measures while an engine has nothing to do, for a part of the time of a batch, and never beside a chat."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.backends.fake.backend import FakeBackend, FakeDecoder
from engine.config import AUTO_SLOTS, EngineConfig, KvLayout, Switch, Tuning
from engine.errors import ModelFailed
from engine.loop import EngineLoop
from engine.scheduler.step import SampleResult, StepPlan
from engine.tuning.lab import Rows, SetUp, Task
from engine.tuning.store import Attempts, read_tuning, write_tuning
from engine.tuning.tuner import Tuner, new_tuner, tuning_steps
from engine.turn import Turn
from engine.types import Finished, Priority
from tests.support.clock import Clock
from tests.support.engine import Bench, chat

TUNING = Tuning(
    slots=3,
    kv_layout=KvLayout.SPLIT,
    flash_attention=Switch.OFF,
    ubatch_tokens=256,
    row_seconds=[(1, 0.01), (16, 0.011)],
    prompt_seconds=[(64, 0.02)],
    depth=64,
    seconds=1.0,
)


class FakeLab:
    """A lab in which each task takes a millisecond; more sequences make no step longer."""

    def __init__(self, decoder: FakeDecoder, clock: Clock, *, fails: bool = False) -> None:
        self.decoder = decoder
        self.clock = clock
        self.fails = fails
        self.tasks: list[Task] = []
        self.applied: list[EngineConfig] = []
        self.is_open = False
        self.threads = 0
        self.most_slots = 32
        self.config = EngineConfig(model="", endpoint="")

    def most_sequences(self, cells: int) -> int:
        return self.most_slots if cells else 0

    def compute(self, task: Task) -> bool:
        if self.fails and isinstance(task, Rows):
            raise RuntimeError("the device is gone")
        self.is_open = self.is_open or isinstance(task, SetUp)
        self.tasks.append(task)
        self.clock.now += 0.001
        return True

    def close(self) -> None:
        self.is_open = False

    def apply(self, config: EngineConfig) -> bool:
        assert config.tuning is not None
        self.applied.append(config)
        self.decoder.reset()
        if config.tuning.slots > self.decoder.slots:
            raise ModelFailed("no room")
        self.decoder.slots = config.tuning.slots
        return True


class TimedDecoder(FakeDecoder):
    """A decoder whose steps take ten milliseconds."""

    clock = Clock()

    def run(self, plan: StepPlan) -> list[SampleResult]:
        self.clock.now += 0.01
        return super().run(plan)


class TunedBench(Bench):
    """An engine with a lab."""

    def __init__(self, *, fails: bool = False, slots: int = 40, turn: Turn | None = None) -> None:
        clock = Clock()
        decoder = TimedDecoder(slots=slots, spare_slots=2)
        decoder.clock = clock
        super().__init__(FakeBackend(decoder), clock=clock, slots=AUTO_SLOTS, tunable=("slots", "flash_attention"))
        self.lab = FakeLab(decoder, clock, fails=fails)
        self.tuned: list[Tuning | None] = []
        self.kept: list[bool] = []
        self.engine = EngineLoop(
            self.backend,
            self.config,
            lambda _, items: self.outputs.extend(items),
            clock=clock,
            turn=turn,
            tuner=Tuner(self.lab, lambda: tuning_steps(self.lab, self.config), clock=clock, cpu_clock=lambda: 0.0),
            on_tuned=self._note,
        )

    def _note(self, tuning: Tuning | None, *, is_kept: bool) -> None:
        self.tuned.append(tuning)
        self.kept.append(is_kept)


def test_an_idle_engine_measures_until_it_has_a_result_then_serves_with_it() -> None:
    bench = TunedBench()
    bench.run()
    assert [each is not None for each in bench.tuned] == [True]
    assert not bench.lab.is_open
    assert bench.lab.applied[0].tuning == bench.tuned[0]
    assert bench.engine.scheduler._max_running == bench.backend.decoder.slots == 32
    assert bench.ask("hello").text
    assert not bench.engine.run_once(), "nothing is left to measure"
    assert bench.kept == [True]


def test_a_chat_is_answered_before_anything_is_measured() -> None:
    bench = TunedBench()
    bench.engine.run_once()
    measured = len(bench.lab.tasks)
    bench.add(chat("hello", "r"))
    while not any(isinstance(output, Finished) for output in bench.outputs):
        bench.engine.run_once()
        assert len(bench.lab.tasks) <= measured + 1, "the step after the last token may measure again"


def test_a_batch_gives_a_third_of_its_time() -> None:
    tuner = new_tuner(FakeLab(FakeDecoder(), Clock()), EngineConfig(model="m", endpoint=""))
    assert tuner.allows_step(is_idle=True)
    assert not tuner.allows_step(is_idle=False)
    tuner.earn(0.3)
    assert tuner.allows_step(is_idle=False)


def test_a_batch_that_never_ends_is_measured_beside_and_loses_nothing() -> None:
    bench, plain = TunedBench(), Bench()
    texts = [f"question {number} about mills and races" for number in range(60)]
    for each in (bench, plain):
        for number, text in enumerate(texts):
            each.add(chat(text, f"r{number}", priority=Priority.BATCH))
    while bench.engine.scheduler.num_running or bench.engine.scheduler.num_waiting or not bench.tuned:
        bench.engine.run_once()
        bench.engine.scheduler.check_integrity()
    found = {each.request_id: each.text for each in bench.outputs if isinstance(each, Finished)}
    assert found == {name: each.text for name, each in plain.run().items()}
    assert bench.tuned[0] is not None


def test_a_search_that_fails_leaves_the_settings_as_they_are() -> None:
    bench = TunedBench(fails=True)
    bench.run()
    assert bench.tuned == [None]
    assert not bench.lab.applied
    assert bench.ask("hello").text


@pytest.mark.parametrize("quiet_from", [1, 2, 5])
def test_a_search_that_others_disturbed_is_made_again_later(quiet_from: int) -> None:
    clock, searches = Clock(), 1
    lab = FakeLab(FakeDecoder(), clock)
    lab.threads = 2
    config = EngineConfig(model="m", endpoint="", slots=AUTO_SLOTS, tunable=("slots",))

    def cpu() -> float:
        return clock.now * (2.0 if searches >= quiet_from else 0.7)

    tuner = Tuner(lab, lambda: tuning_steps(lab, config), clock=clock, cpu_clock=cpu)
    while tuner.is_running:
        if not tuner.allows_step(is_idle=True):
            searches += 1
            clock.now += 1000
        tuner.step()
    assert tuner.result is not None
    assert searches == min(quiet_from, 4)
    assert tuner.is_disturbed is (quiet_from == 5)
    assert not lab.is_open


class RecordedTurn:
    """A turn that comes where `is_free`, and knows whether it is held."""

    def __init__(self) -> None:
        self.is_free = True
        self.is_held = False

    def take(self, *, is_chat: bool) -> bool:
        self.is_held = self.is_free
        return self.is_free

    def give_back(self) -> None:
        self.is_held = False


def test_an_engine_holds_no_turn_while_it_waits_to_measure_again_and_wakes_up_for_it() -> None:
    turn = RecordedTurn()
    bench = TunedBench(turn=turn)
    bench.lab.threads = 2  # a frozen processor clock: others have the cores
    assert bench.engine.run_once()
    while bench.engine.run_once():
        pass
    tuner = bench.engine._tuner
    assert tuner is not None, "the search was disturbed"
    assert not turn.is_held
    assert tuner.pause_seconds == pytest.approx(300)
    measured = len(bench.lab.tasks)
    bench.lab.clock.now += 301
    assert tuner.pause_seconds == 0
    bench.engine.run_once()
    bench.engine.run_once()
    assert len(bench.lab.tasks) > measured


def test_nothing_is_measured_beside_a_batch_that_has_no_turn() -> None:
    turn = RecordedTurn()
    bench = TunedBench(turn=turn)
    for number in range(40):
        bench.add(chat("hello", f"r{number}", priority=Priority.BATCH, max_tokens=200))
    while not bench.lab.tasks:
        bench.engine.run_once()
    turn.is_free, measured = False, len(bench.lab.tasks)
    for _ in range(20):
        assert bench.engine.run_once()
    assert len(bench.lab.tasks) == measured


def test_a_search_with_little_memory_finds_nothing_that_would_be_kept() -> None:
    lab = FakeLab(FakeDecoder(), Clock())
    config = EngineConfig(model="m", endpoint="", slots=AUTO_SLOTS, tunable=("slots",))
    lab.most_sequences = lambda cells: 7 if cells else 0  # type: ignore[method-assign]
    assert list(tuning_steps(lab, config)) == []
    lab.most_slots = 7
    assert list(itertools.islice(tuning_steps(lab, config), 1)), "all that the device may have"


def test_settings_that_do_not_fit_leave_the_engine_as_it_is() -> None:
    bench = TunedBench(slots=2)
    bench.run()
    assert bench.tuned == [None], "nothing is kept or shown that does not serve"
    assert bench.lab.applied
    assert bench.engine.scheduler._max_running == 2
    assert bench.ask("hello").text


def test_a_file_keeps_a_tuning_and_an_unreadable_one_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "tuning" / "a.json"
    assert read_tuning(path) is None
    write_tuning(path, TUNING)
    assert read_tuning(path) == TUNING
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]
    path.write_text(path.read_text()[:40])
    assert read_tuning(path) is None


def test_processes_that_end_while_they_measure_are_counted_and_forgotten_after_a_day(tmp_path: Path) -> None:
    now = [time.time()]
    attempts = Attempts(tmp_path / "tunings" / "a.json", lambda: now[0])
    for _ in range(3):
        assert not attempts.are_too_many
        attempts.begin()
    assert attempts.are_too_many
    now[0] += 100_000
    assert not attempts.are_too_many
    now[0] -= 100_000
    attempts.end()
    assert not attempts.are_too_many
    attempts.end()


@pytest.mark.parametrize("fails", [False, True])
def test_a_search_that_ends_is_no_death(tmp_path: Path, *, fails: bool) -> None:
    lab = FakeLab(FakeDecoder(), Clock(), fails=fails)
    path = tmp_path / "a.json"
    config = EngineConfig(model="m", endpoint="", slots=AUTO_SLOTS, tunable=("slots",), tuning_path=str(path))
    tuner = new_tuner(lab, config)
    assert not path.with_suffix(".measuring").exists()
    tuner.step()
    assert path.with_suffix(".measuring").exists()
    while tuner.is_running:
        try:
            tuner.step()
        except RuntimeError as error:
            tuner.fail(error)
    assert not path.with_suffix(".measuring").exists()


def test_a_tuning_of_another_version_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"slots": 3}')
    assert read_tuning(path) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"slots": 0},
        {"slots": 10**9},
        {"ubatch_tokens": 0},
        {"row_seconds": [(1, 0.0)]},
        {"prompt_seconds": [(0, 0.1)]},
        {"prompt_seconds": [(16, -1.0)]},
    ],
)
def test_a_tuning_with_impossible_numbers_is_measured_again(wrong: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_tuning(path, msgspec.structs.replace(TUNING, **wrong))
    assert read_tuning(path) is None


@pytest.mark.parametrize("tuning", [TUNING, None])
def test_a_known_tuning_tells_the_cost_of_steps_from_the_start(tuning: Tuning | None) -> None:
    cost = Bench(tuning=tuning).engine.scheduler.share.cost
    assert cost.is_measured is (tuning is not None)
