"""The scheduler under random requests, steps and cancels, on memories of each kind that check what is done with them."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.backends.fake.memory import FakeMemory
from engine.errors import DecodeFailed
from engine.scheduler.slots import MemoryTraits
from engine.scheduler.step import SampleResult
from engine.types import Priority
from tests.support.engine import make_sequence
from tests.unit.engine.scheduler.test_scheduler import END, make_scheduler


class AnyOrder(RuleBasedStateMachine):
    """Random requests, steps and cancels on a memory with real content; the integrity is checked after each."""

    sequences = Bundle("sequences")
    traits = MemoryTraits()

    def __init__(self) -> None:
        super().__init__()
        self.memory = FakeMemory(5, self.traits)
        self.scheduler = make_scheduler(
            slots=3,
            spare_slots=2,
            context_size=20,
            batch_tokens=12,
            prefill_tokens=5,
            traits=self.traits,
            max_drafts=2,
            first_position=self.memory.first_position,
        )
        self.number = 0
        self.is_short = False
        self.ended: set[str] = set()

    @rule(
        target=sequences,
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=19),
        max_tokens=st.none() | st.integers(1, 8),
        priority=st.sampled_from(Priority),
        tenant=st.sampled_from(["t", "u"]),
        group=st.sampled_from(["", "g", "h"]),
    )
    def add(self, prompt, max_tokens, priority, tenant, group):
        self.number += 1
        given = {"max_tokens": max_tokens, "priority": priority, "tenant": tenant, "group": group}
        sequence = make_sequence(str(self.number), prompt, **given)
        self.scheduler.add(sequence)
        return sequence

    @rule(
        token=st.sampled_from([1, 2, END]),
        forced=st.lists(st.integers(1, 2), max_size=2),
        is_right=st.booleans(),
        seconds=st.sampled_from([0.0, 0.001, 0.1, 30.0]),
    )
    def step(self, token: int, forced: list[int], is_right: bool, seconds: float) -> None:
        self.scheduler.admit()
        plan = self.scheduler.plan()
        assert plan.num_tokens <= 12
        assert len({entry.slot for entry in plan.entries}) == len(plan.entries)
        for fork in plan.forks:
            self.memory.fork(fork)
        if self.is_short and plan.entries:
            self.evict()
        for entry in plan.entries:
            self.memory.append(entry)
            expected = entry.sequence.tokens
            assert self.memory[entry.slot][: len(expected)] == expected[: entry.start + len(entry.tokens)]
        results = [self.sampled(entry, token, forced, is_right) for entry in plan.sampled]
        for sequence, new, _ in self.scheduler.apply(plan, results):
            assert new
            if sequence.finish_reason is not None:
                assert sequence.request_id not in self.ended
                self.ended.add(sequence.request_id)
                self.scheduler.release(sequence)
        self.scheduler.record_seconds(plan, seconds)

    def sampled(self, entry, token: int, forced: list[int], is_right: bool) -> SampleResult:
        if not entry.num_drafts:
            return SampleResult([token, *forced])
        drafts = entry.tokens[-entry.num_drafts :]
        if is_right:
            return SampleResult([*drafts, token], len(drafts))
        self.memory.cut(entry.slot, entry.num_drafts)
        return SampleResult([token])

    @rule(sequence=consumes(sequences))
    def cancel(self, sequence) -> None:
        self.scheduler.release(sequence)

    @rule()
    def run_short_of_memory(self) -> None:
        self.is_short = True

    def evict(self) -> None:
        """As the loop does it: after the copies of a step, which the memory has then made."""
        self.is_short = False
        try:
            self.memory.fork(self.scheduler.evict())
        except DecodeFailed:
            return

    @invariant()
    def integrity_holds(self) -> None:
        self.scheduler.check_integrity()

    def teardown(self) -> None:
        for _ in range(2000):
            self.step(END, [], False, 0.01)
            if not self.scheduler.num_running and not self.scheduler.num_waiting:
                return
        raise AssertionError("a sequence was starved")


class AnyOrderInSplitMemory(AnyOrder):
    traits = MemoryTraits(is_split=True)


class AnyOrderOfStates(AnyOrder):
    traits = MemoryTraits(can_trim=False)


class AnyOrderOfWindows(AnyOrder):
    traits = MemoryTraits(window=3)


class AnyOrderOfWindowsInSplitMemory(AnyOrder):
    traits = MemoryTraits(window=3, slack=4, is_split=True)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrderInSplitMemory = AnyOrderInSplitMemory.TestCase
TestAnyOrderOfStates = AnyOrderOfStates.TestCase
TestAnyOrderOfWindows = AnyOrderOfWindows.TestCase
TestAnyOrderOfWindowsInSplitMemory = AnyOrderOfWindowsInSplitMemory.TestCase
for case in (
    TestAnyOrder,
    TestAnyOrderInSplitMemory,
    TestAnyOrderOfStates,
    TestAnyOrderOfWindows,
    TestAnyOrderOfWindowsInSplitMemory,
):
    case.settings = settings(max_examples=60, deadline=None)
