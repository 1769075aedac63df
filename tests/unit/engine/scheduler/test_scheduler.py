"""The scheduler: admission, prefix reuse, preemption, drafts and memory operations, without a model."""

from __future__ import annotations

import pytest

from engine.errors import DecodeFailed
from engine.scheduler.kv_cache import MemoryUse
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.slots import Fork, MemoryTraits
from engine.scheduler.step import SampleResult, StepPlan
from engine.types import FinishReason, Priority
from tests.support.engine import make_sequence

END = 99


def make_scheduler(slots: int = 2, **given: object) -> Scheduler:
    values: dict[str, object] = {"context_size": 64, "batch_tokens": 8, "prefill_tokens": 8}
    return Scheduler(slots=slots, is_end=lambda token: token == END, **{**values, **given})  # type: ignore[arg-type]


def step(scheduler: Scheduler, token: int = 1) -> StepPlan:
    scheduler.admit()
    plan = scheduler.plan()
    for sequence, _, _ in scheduler.apply(plan, [SampleResult([token]) for _ in plan.sampled]):
        if sequence.finish_reason is not None:
            scheduler.release(sequence)
    scheduler.check_integrity()
    return plan


def run_to_end(scheduler: Scheduler, token: int = 1) -> None:
    while scheduler.num_running or scheduler.num_waiting:
        step(scheduler, token)


def test_a_long_prompt_is_prefilled_in_chunks_and_sampled_after_the_last() -> None:
    scheduler = make_scheduler(prefill_tokens=4)
    scheduler.add(make_sequence("a", list(range(10))))
    plans = [step(scheduler) for _ in range(4)]
    assert [plan.num_tokens for plan in plans] == [4, 4, 2, 1]
    assert [len(plan.sampled) for plan in plans] == [0, 0, 1, 1]


def test_tokens_are_counted_once_and_those_of_a_reused_prefix_as_cached() -> None:
    scheduler = make_scheduler(slots=1, prefill_tokens=4)
    scheduler.add(make_sequence("a", list(range(10)), max_tokens=3))
    step(scheduler)
    assert (scheduler.counts.prompt, scheduler.counts.output) == (4, 0), "by chunk, not only in the end"
    run_to_end(scheduler)
    assert (scheduler.counts.prompt, scheduler.counts.cached, scheduler.counts.output) == (10, 0, 3)
    scheduler.add(make_sequence("b", [*range(8), 77, 78], max_tokens=2))
    run_to_end(scheduler)
    assert (scheduler.counts.prompt, scheduler.counts.cached, scheduler.counts.output) == (20, 8, 5)


def test_accepted_drafts_count_as_output_and_rejected_ones_do_not() -> None:
    scheduler = make_scheduler(slots=1)
    scheduler.add(make_sequence("a", [1, 2, 3], max_tokens=9))
    scheduler.admit()
    plan = scheduler.plan()
    scheduler.apply(plan, [SampleResult([5, 6, 7])])
    assert (scheduler.counts.prompt, scheduler.counts.output) == (3, 3)


@pytest.mark.parametrize(("traits", "total"), [(MemoryTraits(), 128), (MemoryTraits(is_split=True), 192)])
def test_memory_is_held_by_running_sequences_and_reusable_after_them(traits: MemoryTraits, total: int) -> None:
    scheduler = make_scheduler(slots=2, spare_slots=1, traits=traits)
    scheduler.add(make_sequence("a", [1, 2, 3, 4], max_tokens=2))
    step(scheduler)
    assert scheduler.memory_use() == MemoryUse(held=4, reusable=0, total=total)
    run_to_end(scheduler)
    use = scheduler.memory_use()
    assert (use.held, use.reusable, use.total) == (0, 5, total)


def test_the_histories_of_all_slots_never_use_more_than_all_memory() -> None:
    scheduler = make_scheduler(slots=2, spare_slots=6, context_size=16)
    for number in range(8):
        scheduler.add(make_sequence(str(number), [100 * number + n for n in range(1, 11)], max_tokens=2))
        run_to_end(scheduler)
    use = scheduler.memory_use()
    assert (use.held, use.reusable, use.total) == (0, 32, 32)


def test_decoding_sequences_are_not_delayed_by_a_long_prompt() -> None:
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
    ignoring = make_sequence("ignoring", [1], ignore_eos=True, max_tokens=3)
    ended = make_sequence("ended", [1])
    for sequence in (limited, endless, ignoring):
        scheduler.add(sequence)
    run_to_end(scheduler)
    scheduler.add(ended)
    step(scheduler, END)
    assert (limited.finish_reason, limited.num_generated) == (FinishReason.LENGTH, 2)
    assert (endless.finish_reason, len(endless.tokens)) == (FinishReason.LENGTH, 6)
    assert (ignoring.finish_reason, ignoring.num_generated) == (FinishReason.LENGTH, 3)
    assert (ended.finish_reason, ended.num_generated) == (FinishReason.STOP, 1)


def test_a_cancelled_request_frees_its_slot_within_a_step() -> None:
    scheduler = make_scheduler(slots=1)
    first, second = make_sequence("a", [1]), make_sequence("b", [1])
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)
    scheduler.release(first)
    assert step(scheduler).entries[0].sequence is second


# --- prefixes ----------------------------------------------------------------------------------------------------------


def test_a_shared_prefix_is_computed_only_once() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence("a", [1, 2, 3, 4], max_tokens=1))
    run_to_end(scheduler)
    scheduler.add(second := make_sequence("b", [1, 2, 3, 9]))
    assert step(scheduler).entries[0].tokens == [9]
    assert second.num_cached == 3


def test_a_prompt_that_is_known_whole_computes_its_last_token_again() -> None:
    scheduler = make_scheduler()
    for name in "ab":
        scheduler.add(make_sequence(name, [1, 2, 3], max_tokens=1))
        run_to_end(scheduler)
    scheduler.add(make_sequence("c", [1, 2, 3]))
    assert step(scheduler).entries[0].tokens == [3]


def test_a_conversation_goes_on_from_its_own_answer() -> None:
    scheduler = make_scheduler()
    scheduler.add(first := make_sequence("a", [1, 2], max_tokens=3))
    run_to_end(scheduler, 7)
    assert first.tokens == [1, 2, 7, 7, 7]
    scheduler.add(make_sequence("b", [1, 2, 7, 7, 7, 5, 6]))
    plan = step(scheduler)
    assert plan.entries[0].tokens == [7, 5, 6]
    assert plan.forks == []


def test_a_prefix_is_not_shared_between_tenants() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence("a", [1, 2, 3, 4], tenant="one", max_tokens=1))
    run_to_end(scheduler)
    scheduler.add(make_sequence("b", [1, 2, 3, 4], tenant="two"))
    plan = step(scheduler)
    assert plan.entries[0].tokens == [1, 2, 3, 4]
    assert Fork(plan.entries[0].slot, plan.entries[0].slot, 0) in plan.forks or plan.entries[0].slot != 0


def test_the_longest_match_is_forked_from_a_slot_that_is_busy() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence("a", [1, 2, 3, 4]))
    step(scheduler)
    scheduler.add(make_sequence("b", [1, 2, 3, 9]))
    plan = step(scheduler)
    assert plan.forks == [Fork(0, 1, 3)]
    assert [entry.tokens for entry in plan.entries] == [[1], [9]]


def test_the_history_used_longest_ago_makes_room_first() -> None:
    scheduler = make_scheduler(slots=1, spare_slots=1)
    for name, prompt in (("a", [1, 1]), ("b", [2, 2]), ("c", [3, 3])):
        scheduler.add(make_sequence(name, prompt, max_tokens=1))
        run_to_end(scheduler)
    scheduler.add(kept := make_sequence("kept", [2, 2, 2], max_tokens=1))
    run_to_end(scheduler)
    scheduler.add(gone := make_sequence("gone", [1, 1, 1], max_tokens=1))
    run_to_end(scheduler)
    assert (kept.num_cached, gone.num_cached) == (2, 0)


def test_a_sequence_waits_for_a_prefix_that_is_being_prefilled_then_forks_it() -> None:
    document = list(range(100, 140))
    scheduler = make_scheduler(slots=4, context_size=200, batch_tokens=64, prefill_tokens=20)
    for n in range(3):
        scheduler.add(make_sequence(str(n), [*document, n, n]))
    assert [step(scheduler).num_tokens for _ in range(2)] == [20, 20]
    plan = step(scheduler)
    assert sorted(len(entry.tokens) for entry in plan.entries) == [2, 2, 2]
    assert {fork.length for fork in plan.forks} == {40}


def test_several_choices_of_one_prompt_prefill_it_once() -> None:
    scheduler = make_scheduler(slots=4, batch_tokens=16, prefill_tokens=16)
    for index in range(3):
        scheduler.add(make_sequence("r", [1, 2, 3, 4, 5], index=index))
    assert step(scheduler).num_tokens == 5
    assert sorted(len(entry.tokens) for entry in step(scheduler).entries) == [1, 1, 1]


def test_in_split_memory_a_short_match_is_not_worth_a_copy() -> None:
    scheduler = make_scheduler(traits=MemoryTraits(is_split=True))
    scheduler.add(make_sequence("a", [1, 2, 3, 4]))
    step(scheduler)
    scheduler.add(make_sequence("b", [1, 2, 3, 9]))
    assert step(scheduler).forks == []


def test_a_memory_that_cannot_be_trimmed_is_forked_only_where_a_history_ends() -> None:
    document = list(range(100, 140))
    scheduler = make_scheduler(
        slots=1,
        spare_slots=1,
        context_size=200,
        batch_tokens=64,
        prefill_tokens=64,
        traits=MemoryTraits(can_trim=False),
    )
    sequences = [make_sequence(str(n), [*document, n, n], max_tokens=2) for n in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    first = step(scheduler)
    assert first.num_tokens == len(document), "it stops where the next prompt diverges"
    run_to_end(scheduler)
    assert [sequence.num_cached for sequence in sequences] == [0, 40, 40]


def test_a_history_is_not_reused_beyond_its_window() -> None:
    scheduler = make_scheduler(
        slots=1, batch_tokens=64, prefill_tokens=64, traits=MemoryTraits(window=8), first_position=lambda _: 22
    )
    scheduler.add(make_sequence("a", list(range(30)), max_tokens=1))
    run_to_end(scheduler)
    scheduler.add(far := make_sequence("b", [*range(20), 77], max_tokens=1))
    run_to_end(scheduler)
    assert far.num_cached == 0


def test_a_history_is_reused_within_its_window() -> None:
    scheduler = make_scheduler(
        slots=1, batch_tokens=64, prefill_tokens=64, traits=MemoryTraits(window=8), first_position=lambda _: 22
    )
    scheduler.add(make_sequence("a", list(range(30)), max_tokens=1))
    run_to_end(scheduler)
    scheduler.add(near := make_sequence("b", [*range(30), 1, 77], max_tokens=1))
    run_to_end(scheduler)
    assert near.num_cached == 30


# --- chat before batch -------------------------------------------------------------------------------------------------


def batch(name: str, prompt: list[int], **given: object):
    return make_sequence(name, prompt, priority=Priority.BATCH, **given)


def test_chat_takes_the_place_of_the_youngest_batch_sequence_at_the_next_step() -> None:
    scheduler = make_scheduler(slots=2, spare_slots=1)
    old, young = batch("old", [1, 2]), batch("young", [3, 4])
    scheduler.add(old)
    step(scheduler)
    scheduler.add(young)
    step(scheduler)
    scheduler.add(chat := make_sequence("chat", [5, 6], max_tokens=2))
    plan = step(scheduler)
    assert {entry.sequence for entry in plan.entries} == {old, chat}
    computed = young.num_computed
    step(scheduler)
    plan = step(scheduler)
    assert {entry.sequence for entry in plan.entries} == {old, young}
    assert plan.forks == []
    assert young.num_computed == computed + 1, "it continues from its own memory"


def test_without_a_spare_slot_a_paused_sequence_is_dropped_and_computed_again() -> None:
    scheduler = make_scheduler(slots=1)
    scheduler.add(paused := batch("b", [1, 2, 3]))
    step(scheduler, 7)
    scheduler.add(make_sequence("c", [5, 6], max_tokens=1))
    assert step(scheduler).entries[0].sequence.request_id == "c"
    assert (paused.slot, paused.num_computed) == (None, 0)
    plan = step(scheduler)
    assert plan.entries[0].tokens == [1, 2, 3, 7]
    assert paused.num_cached == 0, "reuse of its own tokens is not cached prompt"


def test_chat_does_not_take_the_place_of_chat() -> None:
    scheduler = make_scheduler(slots=1, spare_slots=1)
    scheduler.add(first := make_sequence("a", [1]))
    step(scheduler)
    scheduler.add(make_sequence("b", [2]))
    assert [entry.sequence for entry in step(scheduler).entries] == [first]


def test_prompts_are_prefilled_in_smaller_chunks_while_a_chat_decodes() -> None:
    scheduler = make_scheduler(slots=2, batch_tokens=17, prefill_tokens=16)
    scheduler.add(make_sequence("chat", [1]))
    step(scheduler)
    scheduler.add(batch("long", list(range(40))))
    assert step(scheduler).num_tokens == 1 + 4


def test_while_a_chat_prompt_is_prefilled_no_batch_prompt_is() -> None:
    scheduler = make_scheduler(slots=2, batch_tokens=16, prefill_tokens=8)
    scheduler.add(batch("long", list(range(40))))
    step(scheduler)
    scheduler.add(make_sequence("chat", [1, 2, 3]))
    assert [entry.sequence.request_id for entry in step(scheduler).entries] == ["chat"]


def test_a_group_is_begun_before_the_next_whatever_the_order_of_arrival() -> None:
    scheduler = make_scheduler(slots=1)
    for name, group in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b"), ("a3", "a")):
        scheduler.add(batch(name, [1], group=group, max_tokens=1))
    assert [step(scheduler).entries[0].sequence.request_id for _ in range(5)] == ["a1", "a2", "a3", "b1", "b2"]


# --- steps -------------------------------------------------------------------------------------------------------------


def test_entries_stand_in_the_order_of_their_slots() -> None:
    scheduler = make_scheduler(slots=3, batch_tokens=12)
    for name in "abc":
        scheduler.add(make_sequence(name, [ord(name)] * 3))
    step(scheduler)
    scheduler.release(scheduler.running[1])
    scheduler.add(make_sequence("d", list(range(20, 30))))
    assert [entry.slot for entry in step(scheduler).entries] == [0, 1, 2]


def test_in_split_memory_running_sequences_stay_side_by_side() -> None:
    scheduler = make_scheduler(
        slots=4, spare_slots=2, batch_tokens=16, prefill_tokens=16, traits=MemoryTraits(is_split=True)
    )
    for n in range(12):
        scheduler.add(make_sequence(str(n), [n] * 3, max_tokens=2 + n % 2 * 3))
    while scheduler.num_waiting:
        slots = sorted(entry.slot for entry in step(scheduler).entries)
        assert slots == list(range(slots[0], slots[0] + len(slots)))


def test_in_split_memory_sequences_that_fork_together_prefill_equally_many_tokens() -> None:
    scheduler = make_scheduler(slots=4, batch_tokens=64, prefill_tokens=64, traits=MemoryTraits(is_split=True))
    document = list(range(100, 140))
    scheduler.add(batch("a", [*document, 1]))
    tails = {"b": [2] * 5, "c": [3] * 9, "d": [4] * 7}
    sequences = [batch(name, [*document, *tail]) for name, tail in tails.items()]
    for sequence in sequences:
        scheduler.add(sequence)
    assert [len(entry.tokens) for entry in step(scheduler).entries] == [41]
    read = {entry.sequence.request_id: len(entry.tokens) for entry in step(scheduler).entries}
    assert read == {"a": 1, "b": 9, "c": 9, "d": 9}
    assert [sequence.num_cached for sequence in sequences] == [36, 40, 38]


def test_in_split_memory_the_last_sequences_move_together() -> None:
    scheduler = make_scheduler(slots=4, batch_tokens=16, prefill_tokens=16, traits=MemoryTraits(is_split=True))
    for name in "abcd":
        scheduler.add(make_sequence(name, [ord(name)] * 3))
    step(scheduler)
    for sequence in scheduler.running[1:3]:
        scheduler.release(sequence)
    plan = step(scheduler)
    assert plan.forks == [Fork(3, 1, 3), Fork(3, 3, 0)]
    assert [entry.slot for entry in plan.entries] == [0, 1]


def test_forced_tokens_are_computed_in_one_step_and_sampled_after_the_last() -> None:
    scheduler = make_scheduler()
    scheduler.add(sequence := make_sequence("a", [1]))
    scheduler.admit()
    plan = scheduler.plan()
    scheduler.apply(plan, [SampleResult([5, 6, 7])])
    plan = step(scheduler)
    assert [(entry.tokens, entry.num_rows) for entry in plan.entries] == [([5, 6, 7], 1)]
    assert sequence.tokens == [1, 5, 6, 7, 1]


def test_forced_tokens_end_where_the_answer_must() -> None:
    scheduler = make_scheduler()
    scheduler.add(sequence := make_sequence("a", [1], max_tokens=2))
    scheduler.admit()
    (grown,) = scheduler.apply(scheduler.plan(), [SampleResult([5, 6, 7])])
    assert grown[1] == [5, 6]
    assert sequence.finish_reason is FinishReason.LENGTH


def test_many_forced_tokens_are_computed_in_chunks_that_leave_room_for_all() -> None:
    scheduler = make_scheduler(slots=2, batch_tokens=8)
    for name in "ab":
        scheduler.add(make_sequence(name, [1]))
    scheduler.admit()
    plan = scheduler.plan()
    scheduler.apply(plan, [SampleResult(list(range(10))) for _ in plan.sampled])
    sizes = []
    for _ in range(3):
        plan = step(scheduler)
        sizes.append([(len(entry.tokens), entry.num_rows) for entry in plan.entries])
    assert sizes == [[(4, 0), (4, 0)], [(4, 0), (4, 0)], [(2, 1), (2, 1)]]


def test_a_shifted_sequence_is_not_paused_since_it_could_not_be_computed_again() -> None:
    scheduler = make_scheduler(slots=1, spare_slots=1, context_size=8, shifts_context=True)
    scheduler.add(shifted := batch("b", [1, 2, 3], max_tokens=12))
    while not shifted.num_shifted:
        step(scheduler)
    scheduler.add(make_sequence("chat", [5]))
    assert step(scheduler).entries[0].sequence is shifted


def test_a_complete_constraint_ends_the_answer() -> None:
    scheduler = make_scheduler()
    scheduler.add(sequence := make_sequence("a", [1]))
    scheduler.admit()
    scheduler.apply(scheduler.plan(), [SampleResult([5], is_complete=True)])
    assert sequence.finish_reason is FinishReason.STOP


def test_a_single_sequence_drafts_what_followed_before_and_keeps_what_is_right() -> None:
    scheduler = make_scheduler(max_drafts=3)
    scheduler.add(sequence := make_sequence("a", [1, 2, 3, 4, 5, 6, 1, 2]))
    step(scheduler, 3)
    scheduler.admit()
    plan = scheduler.plan()
    assert [(entry.tokens, entry.num_rows, entry.num_drafts) for entry in plan.entries] == [([3, 4, 5, 6], 4, 3)]
    scheduler.apply(plan, [SampleResult([4, 5, 9], num_accepted=2)])
    assert sequence.tokens[-4:] == [3, 4, 5, 9]
    assert sequence.num_computed == len(sequence.tokens) - 1
    scheduler.check_integrity()


def test_several_decoding_sequences_get_no_drafts() -> None:
    scheduler = make_scheduler(slots=3, batch_tokens=32, prefill_tokens=32, max_drafts=3)
    for name in "abc":
        scheduler.add(make_sequence(name, [1, 2, 3, 4, 5, 6, 1, 2]))
    step(scheduler, 3)
    assert all(entry.num_drafts == 0 for entry in step(scheduler, 3).entries)


def test_a_full_context_is_shifted_only_where_the_model_file_asks_for_it() -> None:
    scheduler = make_scheduler(context_size=8, shifts_context=True)
    scheduler.add(sequence := make_sequence("a", [1, 2, 3], max_tokens=20))
    plans = [step(scheduler) for _ in range(12)]
    assert any(plan.shifts for plan in plans)
    assert all(entry.start + len(entry.tokens) <= 8 for plan in plans for entry in plan.entries)
    assert sequence.num_generated > 8


def test_a_step_without_room_evicts_the_oldest_history_then_a_paused_sequence() -> None:
    scheduler = make_scheduler(slots=1, spare_slots=2)
    scheduler.add(make_sequence("old", [1, 1], max_tokens=1))
    run_to_end(scheduler)
    scheduler.add(paused := batch("b", [2, 2]))
    step(scheduler)
    scheduler.add(make_sequence("chat", [3, 3]))
    step(scheduler)
    assert scheduler.evict() == Fork(0, 0, 0)
    assert scheduler.evict() == Fork(1, 1, 0)
    assert paused.slot is None
    with pytest.raises(DecodeFailed):
        scheduler.evict()
    scheduler.check_integrity()
