"""Chat beside a batch, on simulated devices whose clock each step moves: chat keeps its speed and the batch makes progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from engine.scheduler.scheduler import Scheduler
from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import MemoryTraits
from engine.scheduler.step import SampleResult, StepPlan
from engine.scheduler.step_cost import StepCost, StepSize, size_of
from engine.types import Priority
from tests.support.engine import make_sequence

Device = Callable[[StepSize], float]


def cpu(size: StepSize) -> float:
    """A model of 135 M parameters on a core: two rows take four times as long as one."""
    return float(np.interp(size.rows, [0, 1, 2, 4, 8, 16], [0, 7, 28, 41, 50, 53]) + 2 * size.others) / 1000


def large_vocabulary(size: StepSize) -> float:
    """270 M parameters with 262 k tokens on a core: more rows than eight cost little, but all of them much."""
    return float(np.interp(size.rows, [0, 1, 2, 6, 8, 16], [0, 15, 48, 115, 95, 126]) + 2.2 * size.others) / 1000


def gpu(size: StepSize) -> float:
    """A step takes about as long for one sequence as for many."""
    return (10 + 0.05 * size.rows + 0.02 * size.others) / 1000


def slow(size: StepSize) -> float:
    """A large model on a CPU: each token takes a quarter of a second."""
    return (250 * size.rows + 100 * size.others) / 1000


DEVICES = [cpu, large_vocabulary, gpu, slow]


@dataclass(kw_only=True)
class Simulation:
    """A scheduler on a device with a clock; a batch of endless lines fills the slots after `fill`."""

    device: Device
    slots: int = 16
    traits: MemoryTraits = field(default_factory=lambda: MemoryTraits(is_split=True))
    now: float = 0.0
    longest_step: float = 0.0
    tokens: dict[str, list[float]] = field(default_factory=dict)
    plans: list[StepPlan] = field(default_factory=list)
    line_tokens: int = 40
    number: int = 0
    is_filled: bool = False

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            slots=self.slots,
            spare_slots=2,
            context_size=4096,
            batch_tokens=2048,
            prefill_tokens=512,
            is_end=lambda _: False,
            traits=self.traits,
        )

    def add(self, name: str, prompt: int = 32, max_tokens: int = 12, **given: object) -> Sequence:
        self.number += 1
        tokens = [1000 * self.number + index for index in range(prompt)]
        sequence = make_sequence(name, tokens, max_tokens=max_tokens, **given)
        self.tokens[name] = []
        self.scheduler.add(sequence)
        return sequence

    def line(self, **given: object) -> Sequence:
        return self.add(f"line{self.number}", 60, self.line_tokens, **{"priority": Priority.BATCH, **given})

    def fill(self) -> None:
        """Run a batch until all slots are in use and the device is known."""
        self.is_filled = True
        for _ in range(2 * self.slots):
            self.line()
        for _ in range(60):
            self.step()

    def step(self) -> StepPlan:
        self.scheduler.admit()
        plan = self.scheduler.plan()
        assert plan.entries, "there is work, but no step"
        seconds = self.device(size_of(plan.entries))
        self.now += seconds
        self.longest_step = max(seconds, self.longest_step)
        for sequence, _, _ in self.scheduler.apply(plan, [SampleResult([7]) for _ in plan.sampled]):
            self.tokens[sequence.request_id].append(self.now)
            if sequence.finish_reason is not None:
                self.scheduler.release(sequence)
                if self.is_filled and sequence.priority is Priority.BATCH:
                    self.line()
        self.scheduler.record_seconds(plan, seconds)
        self.scheduler.check_integrity()
        self.plans.append(plan)
        return plan

    def run(self, *sequences: Sequence) -> float:
        """Run until these have ended; return the seconds."""
        began = self.now
        while any(sequence.finish_reason is None for sequence in sequences):
            self.step()
        return self.now - began

    def batch_tokens(self, since: float) -> int:
        return sum(at > since for name, times in self.tokens.items() if name.startswith("line") for at in times)


def idle_seconds(device: Device, **chat: int) -> tuple[float, float]:
    """Seconds of a chat on an idle device: to its first token, and to its last."""
    simulation = Simulation(device=device)
    seconds = simulation.run(simulation.add("chat", **chat))
    return simulation.tokens["chat"][0], seconds


def rate_alone(device: Device, slots: int = 16) -> float:
    """Tokens per second of a batch that has the device."""
    simulation = Simulation(device=device, slots=slots)
    simulation.fill()
    began = simulation.now
    for _ in range(200):
        simulation.step()
    return simulation.batch_tokens(began) / (simulation.now - began)


@pytest.mark.parametrize("slots", [8, 16])
@pytest.mark.parametrize("device", DEVICES)
def test_a_short_chat_beside_a_batch_takes_twice_its_time_and_a_step_at_most(device: Device, slots: int) -> None:
    idle_first, idle = idle_seconds(device)
    busy = Simulation(device=device, slots=slots)
    busy.fill()
    for number in range(12):
        busy.longest_step = 0.0
        busy.step()  # of the batch, which a chat that comes meanwhile waits for
        waited, began = busy.longest_step, busy.now
        seconds = busy.run(busy.add(f"chat{number}"))
        assert waited + seconds <= 2 * idle + waited
        assert busy.tokens[f"chat{number}"][0] - began <= 2 * idle_first
        for _ in range(3):
            busy.step()


@pytest.mark.parametrize("device", DEVICES)
def test_a_running_chat_keeps_seven_tenths_of_its_idle_rate(device: Device) -> None:
    idle_first, idle = idle_seconds(device, max_tokens=300)
    busy = Simulation(device=device)
    busy.fill()
    busy.run(busy.add("chat", max_tokens=300))
    times = busy.tokens["chat"]
    assert 299 / (times[-1] - times[0]) >= 0.7 * 299 / (idle - idle_first)


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_keeps_a_share_of_the_device_beside_chats_without_a_pause(device: Device) -> None:
    busy = Simulation(device=device)
    busy.fill()
    chat = busy.add("chat0", max_tokens=60)
    began = busy.now
    for number in range(1, 25):
        following = busy.add(f"chat{number}", max_tokens=60)
        busy.run(chat)
        chat = following
    rate = busy.batch_tokens(began) / (busy.now - began)
    assert rate >= (0.8 if device is gpu else 0.12 if device is slow else 0.2) * rate_alone(device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_is_not_starved_by_prompts_of_chat_without_a_pause(device: Device) -> None:
    busy = Simulation(device=device)
    busy.fill()
    chat, began = busy.add("chat0", 300, 1), busy.now
    for number in range(1, 60):
        following = busy.add(f"chat{number}", 300, 1)
        busy.run(chat)
        chat = following
    assert busy.batch_tokens(began) / (busy.now - began) >= 0.05 * rate_alone(device)


@pytest.mark.parametrize("device", DEVICES)
def test_every_line_makes_progress_beside_a_chat(device: Device) -> None:
    busy = Simulation(device=device, line_tokens=3000)
    for _ in range(16):
        busy.line()
    for _ in range(30):
        busy.step()
    busy.add("chat", max_tokens=1000)
    busy.step()
    lines = [sequence for sequence in busy.scheduler.running if sequence.priority is Priority.BATCH]
    counts = [line.num_generated for line in lines]
    while len(busy.tokens["chat"]) < 700:
        busy.step()
    grown = [
        line.num_generated - count for line, count in zip(lines, counts, strict=True) if line.finish_reason is None
    ]
    assert min(grown) > 10
    assert max(grown) - min(grown) <= 2, "all of them equally"


def test_several_chats_slow_each_other_as_they_do_without_a_batch() -> None:
    alone, busy = Simulation(device=cpu), Simulation(device=cpu)
    busy.fill()
    idle = alone.run(*[alone.add(f"chat{number}", max_tokens=50) for number in range(4)])
    assert busy.run(*[busy.add(f"chat{number}", max_tokens=50) for number in range(4)]) <= 1.4 * idle


def test_where_a_step_costs_the_same_with_a_batch_it_is_in_every_step() -> None:
    busy = Simulation(device=gpu)
    busy.fill()
    busy.add("chat", max_tokens=200)
    for _ in range(5):
        busy.step()
    assert all(len(busy.step().entries) == 16 for _ in range(100))


def test_a_slow_device_computes_a_few_neighbouring_lines_at_a_time_beside_a_chat() -> None:
    busy = Simulation(device=slow, line_tokens=500)
    for _ in range(16):
        busy.line()
    for _ in range(40):
        busy.step()
    busy.add("chat", max_tokens=400)
    for _ in range(5):
        busy.step()
    alone, seen = slow(StepSize(rows=1)), set()
    for _ in range(200):
        lines = [entry.slot for entry in busy.step().entries if entry.sequence.priority is Priority.BATCH]
        assert slow(StepSize(rows=len(lines))) <= 4 * alone
        assert sum(slot - 1 not in lines for slot in lines) <= 2, "neighbours, also around the end"
        seen |= set(lines)
    assert len(seen) == 15


def test_prompts_of_a_batch_beside_a_chat_come_in_pieces_and_in_turns_with_its_decoding() -> None:
    busy = Simulation(device=cpu, line_tokens=4)
    busy.fill()
    busy.add("chat", max_tokens=1000)
    for _ in range(600):
        busy.step()
    busy.longest_step, rows, others = 0.0, 0, 0
    for _ in range(300):
        size = size_of(entry for entry in busy.step().entries if entry.sequence.priority is Priority.BATCH)
        rows, others = rows + size.rows, others + size.others
    assert busy.longest_step <= 0.3
    assert rows > 10
    assert others > 100


def test_a_chat_does_not_wait_for_the_prefix_of_a_line_that_another_chat_delays() -> None:
    busy = Simulation(device=cpu)
    busy.fill()
    chat = busy.add("first", max_tokens=400)
    for _ in range(5):
        busy.step()
    busy.is_filled = False
    for sequence in busy.scheduler.of_client("c"):
        if sequence is not chat:
            busy.scheduler.release(sequence)
    line = busy.line()
    line.tokens = list(range(2000))
    line.num_prompt_tokens = 2000
    busy.step()
    waiting = make_sequence("second", [*range(1900), 5], max_tokens=1)
    busy.tokens["second"] = []
    busy.scheduler.add(waiting)
    assert busy.run(waiting) <= 1.4 * cpu(StepSize(1, 2000))
    assert waiting.num_cached == 1900


def test_a_line_that_must_be_alone_hardly_delays_a_chat_and_ends() -> None:
    idle_first, idle = idle_seconds(cpu, max_tokens=300)
    busy = Simulation(device=cpu)
    busy.fill()
    chat = busy.add("chat", max_tokens=300)
    for _ in range(3):
        busy.step()
    alone = busy.line(exclusive=True)
    while alone.slot is None:
        busy.scheduler.release(next(other for other in busy.scheduler.running if other.priority is Priority.BATCH))
        busy.step()
    busy.run(chat)
    times = busy.tokens["chat"]
    assert 299 / (times[-1] - times[0]) >= 0.7 * 299 / (idle - idle_first)
    assert alone.num_generated > 1
    for plan in busy.plans:
        assert len(plan.entries) == 1 or all(entry.sequence is not alone for entry in plan.entries)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_a_line_that_must_be_alone_and_other_lines_both_go_on_beside_chat(device: Device, *, is_first: bool) -> None:
    busy = Simulation(device=device, line_tokens=2000)
    busy.fill()
    busy.add("chat", max_tokens=4000)
    for _ in range(30):
        busy.step()
    busy.line_tokens = 20
    alone = busy.line(exclusive=True)
    while alone.slot is None:
        busy.scheduler.release(next(other for other in busy.scheduler.running if other.priority is Priority.BATCH))
        busy.step()
    if is_first:
        for other in [each for each in busy.scheduler.running if each.priority is Priority.BATCH and each is not alone]:
            busy.scheduler.release(other)
        busy.line_tokens = 2000
        for _ in range(busy.slots):
            busy.line()
    began, name = busy.now, alone.request_id
    for _ in range(3500):
        busy.step()
        if alone.finish_reason is not None:
            break
    assert alone.finish_reason is not None
    assert busy.batch_tokens(began) - len(busy.tokens[name]) > 0, "the others, too"


def test_lines_between_two_chats_have_the_device() -> None:
    busy = Simulation(device=cpu)
    busy.fill()
    busy.run(busy.add("chat", max_tokens=5))
    assert all(len(busy.step().entries) > 1 for _ in range(20))


def test_one_slow_step_does_not_stop_a_batch_for_long() -> None:
    busy = Simulation(device=cpu)
    busy.fill()
    busy.add("chat", max_tokens=1000)
    for _ in range(30):
        busy.step()
    device, busy.device = busy.device, lambda _: 60.0
    while len(busy.step().entries) == 1:
        pass
    busy.device, began = device, busy.now
    while len(busy.step().entries) == 1:
        pass
    assert busy.now - began < 5


# --- the cost of steps -------------------------------------------------------------------------------------------------


def measured(device: Device, *sizes: StepSize) -> StepCost:
    cost = StepCost()
    for size in sizes * 20:
        cost.record(size, device(size))
    return cost


@pytest.mark.parametrize("device", [cpu, large_vocabulary, gpu])
def test_the_cost_of_sizes_that_were_measured_is_known_and_of_others_about(device: Device) -> None:
    sizes = [StepSize(rows, others) for rows in (1, 2, 8, 16) for others in (0, 128)]
    cost = measured(device, *sizes)
    for size in sizes:
        assert cost.seconds(size) == pytest.approx(device(size), rel=0.1)
    assert device(StepSize(8)) <= 1.01 * cost.seconds(StepSize(12)) <= 1.02 * device(StepSize(16))
    assert cost.seconds(StepSize(1, 64)) == pytest.approx(device(StepSize(1, 64)), rel=0.5)


def test_nothing_is_expected_before_the_first_step() -> None:
    cost = StepCost()
    assert not cost.is_measured
    assert cost.seconds(StepSize(4, 100)) == 0
    assert cost.tokens_within(1.0, 512) is None


def test_the_cost_follows_a_device_that_gets_slower_but_not_one_slow_step() -> None:
    cost = measured(cpu, StepSize(1))
    cost.record(StepSize(1), 10.0)
    assert cost.seconds(StepSize(1)) < 0.02
    for _ in range(30):
        cost.record(StepSize(1), 0.07)
    assert cost.seconds(StepSize(1)) == pytest.approx(0.07, rel=0.05)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 1), (0.13, 64), (0.3, 128), (60.0, 512)])
def test_as_many_prompt_tokens_fit_as_their_time_permits(seconds: float, expected: int) -> None:
    assert measured(cpu, StepSize(1), StepSize(1, 127), StepSize(1, 511)).tokens_within(seconds, 512) == expected
