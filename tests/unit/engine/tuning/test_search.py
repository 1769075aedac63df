"""The search finds settings within 3 % of the best of a grid, on devices that are formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product

import pytest

from engine.config import KvLayout, Switch, Tuning
from engine.tuning.lab import Choice, Prompt, Rows, SetUp, Spread, Task
from engine.tuning.search import Limits, Search

START = Choice(kv_layout=KvLayout.SPLIT, flash_attention=Switch.AUTO, ubatch_tokens=512)
TUNABLE = ("slots", "kv_layout", "flash_attention", "ubatch_tokens")
LIMITS = Limits(tunable=TUNABLE, context_size=4096, sequences=32, most_slots=32, slots=None, batch_tokens=2048)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

Seconds = Callable[[Choice, int], float]


@dataclass(slots=True)
class Machine:
    """A device: seconds of steps by their rows, and of prompts by their tokens, under a choice; `noise` only adds to them."""

    rows: Seconds
    prompt: Seconds
    most: int = 10_000
    noise: list[float] = field(default_factory=lambda: [0.0])
    tasks: list[Task] = field(default_factory=list)
    choice: Choice = START

    def run(self, limits: Limits = LIMITS, start: Choice = START) -> Tuning | None:
        steps = Search(limits, start).steps()
        try:
            task = next(steps)
            while True:
                task = steps.send(self.seconds(task))
        except StopIteration as end:
            result: Tuning | None = end.value
            return result

    def seconds(self, task: Task) -> float:
        self.tasks.append(task)
        factor = 1 + self.noise[len(self.tasks) % len(self.noise)]
        match task:
            case SetUp():
                self.choice = task.choice
                return 0.01 if task.sequences <= self.most else math.inf
            case Prompt(num_tokens=number):
                return factor * self.prompt(self.choice, number)
            case Rows(sequences=number):
                return factor * self.rows(self.choice, number)
            case Spread():
                return 0.001

    def speed(self, choice: Choice, slots: int) -> float:
        """Tokens per second of a request of 256 tokens and an answer of 64."""
        size = 256
        return 1 / (256 * self.prompt(choice, size) / size + 64 * self.rows(choice, slots) / slots)


def cpu_rows(choice: Choice, number: int) -> float:
    """Gemma 3 270M on two cores: 16 rows cost little more than 8; unified memory and no flash attention are slower."""
    points = {1: 12, 2: 23, 3: 30, 4: 34, 6: 54, 8: 43, 12: 53, 16: 54, 24: 78, 32: 98}
    slower = 1.25 if choice.kv_layout is KvLayout.UNIFIED else 1.0
    return points[number] / 1000 * slower * (1.2 if choice.flash_attention is Switch.OFF else 1.0)


def flat_rows(choice: Choice, number: int) -> float:
    return 0.01 + 0.00005 * number + (0.002 if choice.kv_layout is KvLayout.SPLIT else 0)


def small_rows(choice: Choice, number: int) -> float:
    """A model whose cache of keys is larger than its weights: four sequences are the fastest."""
    return 0.0002 * number * (1 + (number / 12) ** 2) * (0.7 if choice.flash_attention is Switch.OFF else 1.0)


def cpu_prompt(_: Choice, number: int) -> float:
    return number / 950


def gpu_prompt(choice: Choice, number: int) -> float:
    pieces = math.ceil(number / choice.ubatch_tokens)
    return pieces * 0.02 + number / 50_000


MACHINES = {
    "cpu": (cpu_rows, cpu_prompt),
    "gpu": (flat_rows, gpu_prompt),
    "small": (small_rows, lambda _, number: number / 40_000),
}


@pytest.mark.parametrize("noise", [[0.0], [0.4, 0.0, 0.01, 3.0, 0.02, 0.0]])
@pytest.mark.parametrize("name", MACHINES)
def test_the_result_is_within_three_percent_of_the_best_of_the_grid(name: str, noise: list[float]) -> None:
    machine = Machine(*MACHINES[name], noise=noise)
    found = machine.run()
    assert found is not None
    grid = [
        (replace(START, kv_layout=layout, flash_attention=flash), slots)
        for layout, flash, slots in product((KvLayout.SPLIT, KvLayout.UNIFIED), (Switch.AUTO, Switch.OFF), SIZES)
    ]
    best = max(machine.speed(choice, slots) for choice, slots in grid)
    choice = replace(START, kv_layout=found.kv_layout, flash_attention=found.flash_attention)
    assert machine.speed(choice, found.slots) >= 0.97 * best


def test_a_prompt_is_computed_in_the_pieces_that_are_fastest() -> None:
    found = Machine(flat_rows, gpu_prompt).run()
    assert found is not None
    assert found.ubatch_tokens == 2048
    slow = Machine(cpu_rows, cpu_prompt).run()
    assert slow is not None
    assert slow.ubatch_tokens == 512, "nothing is gained, so what was usual stays"


def test_settings_of_the_user_are_not_tried() -> None:
    machine = Machine(flat_rows, gpu_prompt)
    found = machine.run(replace(LIMITS, tunable=("slots",)))
    assert found is not None
    assert {task.choice for task in machine.tasks if isinstance(task, SetUp)} == {START}
    fixed = machine.run(replace(LIMITS, tunable=(), slots=4))
    assert fixed is not None
    assert (fixed.slots, fixed.row_seconds[-1][0]) == (4, 32), "drafts of one sequence need the cost of more rows"


def test_no_step_takes_long_but_the_first_of_a_slow_device() -> None:
    machine = Machine(cpu_rows, cpu_prompt)
    machine.run()
    assert max(task.num_tokens for task in machine.tasks if isinstance(task, Prompt)) / 950 <= 0.25


def test_a_slow_device_is_measured_for_half_a_minute_at_most_and_has_a_result() -> None:
    slow = Machine(lambda _, number: 1.0 + 0.1 * number, lambda _, number: number / 10)
    found = slow.run()
    assert found is not None
    assert found.seconds < 40
    assert found.slots >= 16


def test_what_does_not_fit_is_left_out() -> None:
    assert Machine(cpu_rows, cpu_prompt, most=0).run() is None
    found = Machine(cpu_rows, cpu_prompt, most=20).run()
    assert found is not None
    assert found.slots == 32, "none that was measured was slower"


@pytest.mark.parametrize(("sequences", "slots"), [(12, 128), (2, 128), (128, 128)])
def test_a_lab_with_little_room_does_not_limit_the_slots(sequences: int, slots: int) -> None:
    limits = replace(LIMITS, sequences=sequences, most_slots=128)
    found = Machine(flat_rows, gpu_prompt).run(limits)
    assert found is not None
    assert found.slots == slots
    assert found.row_seconds[-1][0] == sequences


def test_a_number_that_is_slower_than_fewer_is_not_taken() -> None:
    found = Machine(small_rows, cpu_prompt).run(replace(LIMITS, most_slots=128))
    assert found is not None
    assert found.slots < 32


@pytest.mark.parametrize("batch_tokens", [32, 64])
def test_no_step_is_larger_than_those_of_the_engine(batch_tokens: int) -> None:
    machine = Machine(flat_rows, gpu_prompt)
    assert machine.run(replace(LIMITS, batch_tokens=batch_tokens)) is not None
    assert max(task.num_tokens for task in machine.tasks if isinstance(task, Prompt)) <= batch_tokens


def test_no_prompt_is_longer_than_the_context() -> None:
    machine = Machine(*MACHINES["small"])
    assert machine.run(replace(LIMITS, context_size=600)) is not None
    prompts = [task.num_tokens for task in machine.tasks if isinstance(task, Prompt)]
    assert max(prompts) == 512
    rooms = [task.cells for task in machine.tasks if isinstance(task, SetUp) and task.sequences == 1]
    assert max(rooms) <= 600


def test_the_depth_is_that_which_was_reached() -> None:
    found = Machine(cpu_rows, lambda _, number: number / 20).run()
    assert found is not None
    assert 16 < found.depth < 512
    usual = Machine(cpu_rows, cpu_prompt).run()
    assert usual is not None
    assert 256 <= usual.depth <= 512


def test_a_model_with_quantised_values_keeps_flash_attention() -> None:
    machine = Machine(small_rows, cpu_prompt)
    found = machine.run(replace(LIMITS, may_turn_flash_off=False))
    assert found is not None
    assert found.flash_attention is Switch.AUTO
