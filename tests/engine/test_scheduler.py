from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.messages import FinishReason, Priority
from engine.scheduler import Plan, Scheduler
from tests.engine.make import make_sequence

END = 99


def make_scheduler(slots: int = 2, context_size: int = 64, batch_tokens: int = 8, prefill_tokens: int = 8) -> Scheduler:
    return Scheduler(
        slots=slots,
        context_size=context_size,
        batch_tokens=batch_tokens,
        prefill_tokens=prefill_tokens,
        is_end=lambda token: token == END,
    )


def step(scheduler: Scheduler, token: int = 1) -> Plan:
    scheduler.admit()
    plan = scheduler.plan()
    for sequence in scheduler.apply(plan, [token] * len(plan.sampled)):
        if sequence.finish_reason is not None:
            scheduler.release(sequence)
    return plan


def test_a_long_prompt_is_read_in_chunks_and_sampled_after_the_last() -> None:
    scheduler = make_scheduler(prefill_tokens=4)
    scheduler.add(make_sequence("a", list(range(10))))
    plans = [step(scheduler) for _ in range(4)]
    assert [plan.num_tokens for plan in plans] == [4, 4, 2, 1]
    assert [len(plan.sampled) for plan in plans] == [0, 0, 1, 1]


def test_those_who_decode_are_not_delayed_by_a_long_prompt() -> None:
    scheduler = make_scheduler(batch_tokens=6, prefill_tokens=6)
    scheduler.add(make_sequence("a", [1]))
    step(scheduler)
    scheduler.add(make_sequence("b", list(range(20))))
    for _ in range(4):
        plan = step(scheduler)
        assert plan.entries[0].sequence.request_id == "a"
        assert plan.num_tokens <= 6


def test_chat_is_admitted_before_batch_and_each_in_order_of_arrival() -> None:
    scheduler = make_scheduler(slots=1)
    for name, priority in (
        ("b1", Priority.BATCH),
        ("b2", Priority.BATCH),
        ("c1", Priority.CHAT),
        ("c2", Priority.CHAT),
    ):
        scheduler.add(make_sequence(name, [1], priority=priority, max_tokens=1))
    order = [step(scheduler).entries[0].sequence.request_id for _ in range(4)]
    assert order == ["c1", "c2", "b1", "b2"]


def test_an_answer_ends_at_its_limit_at_the_end_token_or_when_the_context_is_full() -> None:
    scheduler = make_scheduler(slots=4, context_size=6)
    limited = make_sequence("limited", [1], max_tokens=2)
    endless = make_sequence("endless", [1])
    stubborn = make_sequence("stubborn", [1], ignore_eos=True, max_tokens=3)
    ended = make_sequence("ended", [1])
    for sequence in (limited, endless, stubborn):
        scheduler.add(sequence)
    while scheduler.running or scheduler.num_waiting:
        step(scheduler)
    scheduler.add(ended)
    step(scheduler, END)
    assert (limited.finish_reason, limited.num_generated) == (FinishReason.LENGTH, 2)
    assert (endless.finish_reason, len(endless.tokens)) == (FinishReason.LENGTH, 6)
    assert (stubborn.finish_reason, stubborn.num_generated) == (FinishReason.LENGTH, 3)
    assert (ended.finish_reason, ended.num_generated) == (FinishReason.STOP, 1)


def test_a_cancelled_request_frees_its_slot_within_a_step() -> None:
    scheduler = make_scheduler(slots=1)
    first, second = make_sequence("a", [1]), make_sequence("b", [1])
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)
    scheduler.release(first)
    assert step(scheduler).entries[0].sequence is second


class AnyOrder(RuleBasedStateMachine):
    """Random requests, steps and cancels; the books are checked after each."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make_scheduler(slots=3, context_size=20, batch_tokens=6, prefill_tokens=5)
        self.number = 0
        self.ended: set[str] = set()

    @rule(
        target=sequences,
        length=st.integers(1, 19),
        max_tokens=st.none() | st.integers(1, 8),
        priority=st.sampled_from(Priority),
    )
    def add(self, length: int, max_tokens: int | None, priority: Priority):
        self.number += 1
        sequence = make_sequence(str(self.number), list(range(length)), max_tokens=max_tokens, priority=priority)
        self.scheduler.add(sequence)
        return sequence

    @rule(token=st.sampled_from([1, 2, END]))
    def step(self, token: int) -> None:
        self.scheduler.admit()
        plan = self.scheduler.plan()
        assert plan.num_tokens <= 6
        assert len({entry.slot for entry in plan.entries}) == len(plan.entries)
        for entry in plan.entries:
            assert entry.tokens == entry.sequence.tokens[entry.start : entry.start + len(entry.tokens)]
            assert entry.start == entry.sequence.num_computed
        for sequence in self.scheduler.apply(plan, [token] * len(plan.sampled)):
            if sequence.finish_reason is not None:
                assert sequence.request_id not in self.ended
                self.ended.add(sequence.request_id)
                self.scheduler.release(sequence)

    @rule(sequence=consumes(sequences))
    def cancel(self, sequence) -> None:
        self.scheduler.release(sequence)

    @invariant()
    def books_are_right(self) -> None:
        self.scheduler.check_integrity()

    def teardown(self) -> None:
        for _ in range(2000):
            self.step(END)
            if not self.scheduler.running and not self.scheduler.num_waiting:
                return
        raise AssertionError("somebody was starved")


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, deadline=None)
