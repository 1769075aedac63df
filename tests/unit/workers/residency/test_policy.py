"""Rules of the residency policy, each on a device of a few states."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workers.residency.policy import ResidencyPolicy
from workers.residency.types import (
    NEVER,
    Action,
    Demand,
    Limits,
    Load,
    Resident,
    ResidentState,
    Retire,
    RetireHow,
    ServableModel,
    room_for,
)

NOW = 10_000.0
LIMITS = Limits()
LONG_AGO = NOW - 1000


def model(name: str, num_bytes: int = 1, **keys) -> ServableModel:
    return ServableModel(name=name, num_bytes=num_bytes, **keys)


def ready(name: str, num_bytes: int = 1, ready_at: float = LONG_AGO, **keys) -> Resident:
    return Resident(name=name, num_bytes=num_bytes, state=ResidentState.READY, ready_at=ready_at, **keys)


def chat(name: str, seconds: float = 1) -> Demand:
    return Demand(name=name, waiting_since=NOW - seconds)


def batch(name: str, priority: int = 0) -> Demand:
    return Demand(name=name, batch_priority=priority)


class Device:
    """A device with a budget of two bytes and four models of one byte, unless a test says otherwise."""

    def __init__(self, *models: ServableModel, budget: int = 2) -> None:
        self.policy = ResidencyPolicy(LIMITS)
        self.models = {each.name: each for each in models or [model(name) for name in "abcd"]}
        self.budget = budget

    def decide(self, residents: list[Resident], *demands: Demand, now: float = NOW) -> Action | None:
        return self.policy.decide(now, self.models, residents, demands, self.budget)


@pytest.fixture
def device() -> Device:
    return Device()


def test_the_oldest_chat_is_served_first(device) -> None:
    assert device.decide([], chat("a", 1), chat("b", 5)) == Load("b")


def test_one_model_loads_at_a_time(device) -> None:
    loading = replace(ready("a"), state=ResidentState.LOADING)
    assert device.decide([loading], chat("b")) is None


def test_an_idle_model_leaves_before_one_that_chat_used_earlier_but_batches_use_now(device) -> None:
    idle = ready("a", last_chat_at=LONG_AGO, last_used_at=LONG_AGO)
    busy = ready("b", num_lines=4, last_used_at=NOW)
    assert device.decide([busy, idle], chat("c")) == Retire("a", RetireHow.DRAIN)


def test_lines_are_given_back_before_a_model_that_chat_has_just_used_leaves(device) -> None:
    chatted = ready("a", last_chat_at=NOW - 2, last_used_at=NOW - 2)
    busy = ready("b", num_lines=4, last_used_at=NOW)
    assert device.decide([chatted, busy], chat("c")) == Retire("b", RetireHow.ABORT)


def test_the_model_that_chat_has_not_used_for_longest_leaves(device) -> None:
    residents = [ready("a", last_chat_at=NOW - 3), ready("b", last_chat_at=NOW - 9)]
    assert device.decide(residents, chat("c")) == Retire("b", RetireHow.DRAIN)


def test_running_chats_are_left_alone_until_the_waiting_chat_has_lost_its_patience(device) -> None:
    residents = [ready("a", num_chats=1, last_chat_at=NOW), ready("b", num_chats=2, last_chat_at=NOW - 5)]
    assert device.decide(residents, chat("c", LIMITS.chat_patience_seconds - 0.1)) is None
    assert device.decide(residents, chat("c", LIMITS.chat_patience_seconds)) == Retire("b", RetireHow.DRAIN)


def test_a_model_whose_own_chats_wait_to_be_taken_counts_as_busy(device) -> None:
    residents = [ready("a", ready_at=NOW), ready("b", num_chats=1)]
    assert device.decide(residents, chat("a", 9), chat("c", 3)) is None


def test_a_pinned_model_never_leaves() -> None:
    device = Device(model("a", is_pinned=True), model("b", is_pinned=True), model("c"))
    assert device.decide([ready("a"), ready("b")], chat("c", 999)) is None


def test_a_pinned_model_is_loaded_before_all_others() -> None:
    device = Device(model("a", is_eager=True), model("b"), model("p", is_pinned=True))
    assert device.decide([], chat("b", 50)) == Load("p")


def test_a_model_that_never_fits_blocks_no_other() -> None:
    device = Device(model("a", 2, is_pinned=True), model("b", 2), model("c", 1), budget=3)
    assert room_for(device.models["b"], list(device.models.values()), 3) == 1
    assert device.decide([ready("a", 2)], chat("b", 99), chat("c", 1)) == Load("c")


def test_of_models_of_unequal_size_only_those_leave_that_make_the_room() -> None:
    device = Device(model("s", 1), model("m", 3), model("n", 4), model("x", 4), budget=8)
    residents = [
        ready("s", 1, last_chat_at=NOW - 9),
        ready("m", 3, last_chat_at=NOW - 8),
        ready("n", 4, last_chat_at=NOW - 7),
    ]
    assert device.decide(residents, chat("x")) == Retire("s", RetireHow.DRAIN)
    assert device.decide(residents[1:], chat("x")) == Retire("m", RetireHow.DRAIN)
    device.models["x"] = model("x", 3)
    assert device.decide(residents, chat("x")) == Retire("m", RetireHow.DRAIN), "without s, which is too small to help"


def test_no_model_leaves_where_all_that_may_go_are_too_small() -> None:
    device = Device(model("s", 1), model("m", 3), model("x", 3), budget=4)
    assert device.decide([ready("s", 1), ready("m", 3, num_chats=1)], chat("x")) is None


def test_a_small_model_is_loaded_while_a_large_one_waits_for_chats_to_end() -> None:
    device = Device(model("m", 3), model("x", 3), model("s", 1), budget=4)
    residents = [ready("m", 3, num_chats=1)]
    assert device.decide(residents, chat("x", 5), chat("s", 1)) == Load("s")
    late = LIMITS.chat_patience_seconds
    assert device.decide(residents, chat("x", late), chat("s", 1)) == Retire("m", RetireHow.DRAIN)


def test_a_batch_waits_while_a_chat_waits(device) -> None:
    residents = [ready("a", num_chats=1), ready("b", num_chats=1)]
    assert device.decide([residents[0]], chat("c"), batch("d")) == Load("c")
    assert device.decide(residents, chat("c"), batch("d")) is None


def test_a_batch_takes_the_place_of_an_idle_model_after_its_last_chat_is_some_time_ago(device) -> None:
    def residents(seconds: float) -> list[Resident]:
        return [ready("a", num_chats=1), ready("b", last_chat_at=NOW - seconds, load_seconds=4.0)]

    assert device.decide(residents(39), batch("c")) is None, "ten times the load"
    assert device.decide(residents(40), batch("c")) == Retire("b", RetireHow.DRAIN)


def test_an_idle_model_that_batches_have_finished_leaves_at_once(device) -> None:
    residents = [ready("a", ready_at=NOW - 3, last_used_at=NOW - 0.1), ready("b", num_lines=2)]
    assert device.decide(residents, batch("b"), batch("c")) == Retire("a", RetireHow.DRAIN)


def test_two_batches_of_the_same_priority_do_not_displace_each_other_at_once(device) -> None:
    residents = [ready("a", num_lines=2), ready("b", num_lines=2)]
    demands = [batch("a"), batch("b"), batch("c")]
    assert device.decide(residents, *demands) is None
    assert device.decide(residents, *demands, now=NOW + LIMITS.batch_patience_seconds - 1) is None
    patient = device.decide(residents, *demands, now=NOW + LIMITS.batch_patience_seconds)
    assert patient == Retire("a", RetireHow.DRAIN)


def test_a_batch_of_higher_priority_takes_the_place_after_the_minimum_residence(device) -> None:
    demands = [batch("a", 1), batch("b", 2), batch("c", 2)]
    fresh = [ready(name, ready_at=NOW - 29, num_lines=2) for name in "ab"]
    settled = [ready(name, ready_at=NOW - 30, num_lines=2) for name in "ab"]
    assert device.decide(fresh, *demands) is None
    assert device.decide(settled, *demands) == Retire("a", RetireHow.DRAIN)


def test_a_batch_out_of_patience_gets_the_place_of_a_busy_model_and_keeps_it_for_its_turn(device) -> None:
    chatting = [ready("a", num_chats=1, last_chat_at=NOW), ready("b", num_chats=1, last_chat_at=NOW - 1)]
    assert device.decide(chatting, batch("c")) is None
    later = NOW + LIMITS.batch_patience_seconds
    assert device.decide(chatting, batch("c"), now=later) == Retire("b", RetireHow.DRAIN)
    young = Demand(name="b", waiting_since=later)
    assert device.decide(chatting[:1], batch("c"), young, now=later + 1) == Load("c"), "b waits behind it"
    in_turn = [chatting[0], ready("c", ready_at=later + 3, num_lines=2)]
    assert device.decide(in_turn, batch("c"), young, now=later + 12.9) is None
    assert device.decide(in_turn, batch("c"), young, now=later + 13) == Retire("c", RetireHow.ABORT)


def test_a_batch_that_cannot_have_a_place_yet_does_not_hold_up_a_chat(device) -> None:
    fresh = [ready("a", ready_at=NOW + 290, num_lines=2), ready("b", ready_at=NOW + 290, num_lines=2)]
    batches = [batch("a"), batch("b"), batch("c")]
    device.decide(fresh, *batches)
    late = NOW + LIMITS.batch_patience_seconds
    assert device.decide(fresh, *batches, Demand(name="d", waiting_since=late), now=late) == Retire(
        "a", RetireHow.ABORT
    )


def test_eager_models_are_loaded_once_by_name_while_there_is_room() -> None:
    device = Device(model("b", is_eager=True), model("a", is_eager=True), model("c", is_eager=True), model("l"))
    assert device.decide([]) == Load("a")
    assert device.decide([ready("a")]) == Load("b")
    assert device.decide([ready("a"), ready("b")]) is None
    assert device.decide([ready("a")]) is None, "b and c are loaded on demand now"


def test_an_eager_model_is_loaded_again_when_its_file_has_changed() -> None:
    device = Device(model("a", is_eager=True))
    assert device.decide([]) == Load("a")
    assert device.decide([]) is None
    device.policy.forget("a")
    assert device.decide([]) == Load("a")


def test_a_model_leaves_after_its_keep_alive() -> None:
    device = Device(model("a", keep_alive_seconds=60.0), model("b"))
    assert device.decide([ready("a", last_used_at=NOW - 59), ready("b")]) is None
    assert device.decide([ready("a", last_used_at=NOW - 60), ready("b")]) == Retire("a", RetireHow.DRAIN)
    assert device.decide([ready("a", last_used_at=NOW - 60)], batch("a")) is None, "its next shard is left to be taken"
    assert device.decide([ready("a", num_chats=1, last_used_at=NOW - 60)]) is None


def test_a_keep_alive_of_zero_leaves_time_to_begin_the_chat_that_the_model_was_loaded_for() -> None:
    device = Device(model("a", keep_alive_seconds=0.0))
    assert device.decide([ready("a", ready_at=NOW - 1)]) is None
    assert device.decide([ready("a", ready_at=NOW - 2)]) == Retire("a", RetireHow.DRAIN)


def test_an_unwanted_model_is_drained_although_it_is_busy_or_pinned() -> None:
    device = Device(model("a", is_pinned=True), model("b"))
    unwanted = replace(ready("a", num_chats=3), is_unwanted=True)
    assert device.decide([unwanted, ready("b")], chat("c")) == Retire("a", RetireHow.DRAIN)


def test_an_admin_loads_a_model_like_a_chat_would(device) -> None:
    residents = [ready("a", num_lines=2), ready("b", last_chat_at=NOW - 1)]
    assert device.decide(residents, Demand(name="c", waiting_since=NOW)) == Retire("a", RetireHow.ABORT)


def test_a_drain_for_a_batch_becomes_an_abort_when_a_chat_needs_the_room(device) -> None:
    leaving = replace(ready("a", num_lines=2), state=ResidentState.RETIRING, retiring=RetireHow.DRAIN)
    residents = [leaving, ready("b", num_lines=2)]
    assert device.decide(residents, batch("c")) is None
    assert device.decide(residents, chat("d")) == Retire("a", RetireHow.ABORT)
    assert device.decide([replace(leaving, retiring=RetireHow.ABORT), residents[1]], chat("d")) is None


def test_a_model_is_loaded_into_free_memory_while_another_is_drained() -> None:
    device = Device(model("m", 4), model("x", 4), model("y", 4), model("s", 1), model("t", 2), budget=5)
    leaving = replace(ready("m", 4, num_chats=1), state=ResidentState.RETIRING, retiring=RetireHow.DRAIN)
    assert device.decide([leaving], chat("s", 1)) == Load("s")
    assert device.decide([leaving], chat("x", 9), chat("s", 1)) == Load("s"), "x fits beside it"
    assert device.decide([leaving], chat("x", 9), chat("t", 1)) is None
    device.budget = 6
    assert device.decide([leaving], chat("x", 9), chat("t", 1)) == Load("t")
    assert device.decide([leaving], batch("s")) is None, "a batch waits for one action after the other"


def test_a_model_that_failed_is_tried_again_after_a_pause_that_doubles(device) -> None:
    pauses = [device.policy.record_failure("a", NOW) - NOW for _ in range(7)]
    assert pauses == [30, 60, 120, 240, 480, 600, 600]
    assert device.decide([], chat("a"), now=NOW + 599) is None
    assert device.decide([], chat("a"), chat("b"), now=NOW + 599) == Load("b")
    assert device.decide([], chat("a"), now=NOW + 600) == Load("a")


@pytest.mark.parametrize("method", ["clear_failures", "forget"])
def test_a_model_that_failed_is_tried_at_once_for_an_admin_or_with_another_file(device, method) -> None:
    device.policy.record_failure("a", NOW)
    assert device.decide([], chat("a")) is None
    getattr(device.policy, method)("a")
    assert device.decide([], chat("a")) == Load("a")
    assert device.policy.record_failure("a", NOW) == NOW + LIMITS.retry_seconds


def test_a_wait_of_a_batch_begins_anew_after_its_model_was_resident(device) -> None:
    busy = [ready("a", num_chats=1), ready("b", num_chats=1)]
    device.decide(busy, batch("c"))
    device.decide([busy[0], ready("c")], batch("c"), now=NOW + 299)
    assert device.decide(busy, batch("c"), now=NOW + 300) is None
    assert device.decide(busy, batch("c"), now=NOW + 600) == Retire("a", RetireHow.DRAIN)


def test_nothing_happens_to_models_that_are_not_served_here(device) -> None:
    assert device.decide([], chat("elsewhere", 50), batch("other")) is None
    assert device.decide([], Demand(name="a", waiting_since=NEVER)) == Load("a")
