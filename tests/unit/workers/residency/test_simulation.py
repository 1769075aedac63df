"""The residency policy over ten minutes of random work: waits that are bounded, and loads that are few."""

from __future__ import annotations

import random

import pytest

from bench.least_loads import least_loads
from tests.unit.workers.residency.simulation import LINE_SECONDS, Batch, Chat, Simulation, random_chats
from workers.residency.types import Limits, ServableModel

NAMES = "abcdef"
PLACES = 2
SECONDS = 600.0
LOAD_SECONDS = 3.0
LONGEST_CHAT = 4.0
LIMITS = Limits()
WEIGHTS = {"uniform": [1.0] * 6, "zipf": [1 / (rank + 1) for rank in range(6)]}

# A chat waits for its patience, for a batch's turn, and for each model that others have waited for longer: its chats, its load.
MOST_WAIT_OF_CHAT = (
    LIMITS.chat_patience_seconds
    + LIMITS.batch_turn_seconds
    + len(NAMES) * (LONGEST_CHAT + LOAD_SECONDS + 1)
)  # fmt: skip
# A batch waits for its patience, and for a residence of each batch that has waited for longer.
MOST_WAIT_OF_BATCH = LIMITS.batch_patience_seconds + len(NAMES) / PLACES * (
    LIMITS.min_residence_seconds + LONGEST_CHAT + LINE_SECONDS + LOAD_SECONDS
)


def equal_models(**keys) -> list[ServableModel]:
    return [ServableModel(name=name, num_bytes=1, **keys) for name in NAMES]


def simulate(chats: list[Chat], batches: list[Batch]) -> Simulation:
    simulation = Simulation(
        equal_models(), PLACES, chats=chats, batches=batches, load_seconds=lambda name: LOAD_SECONDS
    )
    return simulation.run(SECONDS)


@pytest.mark.parametrize("per_second", [0.05, 0.2, 1.0, 5.0])
@pytest.mark.parametrize("kind", ["uniform", "zipf"])
@pytest.mark.parametrize("has_batches", [False, True], ids=["chats", "chats and batches"])
def test_of_six_models_of_which_two_fit_none_starves_and_loads_are_few(kind, per_second, has_batches) -> None:
    chats = random_chats(NAMES, WEIGHTS[kind], per_second, SECONDS - MOST_WAIT_OF_CHAT, seed=7)
    batches = [Batch(name, seconds=SECONDS) for name in NAMES] if has_batches else []
    simulation = simulate(chats, batches)
    assert max(chat.wait for chat in chats) <= MOST_WAIT_OF_CHAT
    assert all(max(batch.waits) <= MOST_WAIT_OF_BATCH for batch in batches)
    assert all(batch.worked > 0 for batch in batches)
    least = least_loads([chat.model for chat in chats], PLACES)
    assert len(simulation.loads) <= 1.5 * least + len(batches)


def test_a_chat_of_a_model_that_is_not_in_memory_pauses_batches_and_waits_for_the_load_alone() -> None:
    chats = [Chat("c", 100.0), Chat("d", 200.0), Chat("e", 300.0)]
    simulate(chats, [Batch("a", SECONDS), Batch("b", SECONDS)])
    assert max(chat.wait for chat in chats) <= LOAD_SECONDS + 1


def test_batches_of_six_models_run_to_their_ends_one_after_the_other_with_one_load_each() -> None:
    batches = [Batch(name, seconds=80.0) for name in NAMES]
    simulation = simulate([], batches)
    assert all(batch.is_done for batch in batches)
    assert len(simulation.loads) == 6


@pytest.mark.parametrize("load_seconds", [1.0, 3.0, 8.0])
def test_two_batches_of_two_models_with_room_for_one_do_not_thrash(load_seconds: float) -> None:
    batches = [Batch("a", 1e6), Batch("b", 1e6)]
    simulation = Simulation(equal_models(), 1, batches=batches, load_seconds=lambda name: load_seconds).run(3600)
    residence = max(LIMITS.min_residence_seconds, LIMITS.min_residence_loads * load_seconds)
    assert len(simulation.loads) <= 3600 / residence + 2
    first, second = sorted(batch.worked for batch in batches)
    assert first >= 0.8 * second
    assert first + second >= 3600 * 0.95, "of the time, the device works"


def test_a_batch_gets_its_turns_while_chats_use_all_models_in_memory_all_the_time() -> None:
    chats = [Chat(name, float(second), seconds=3.0) for second in range(3600) for name in "ab"]
    batch = Batch("c", 1e6)
    Simulation(equal_models(), PLACES, chats=chats, batches=[batch]).run(3600)
    turns = 3600 / (LIMITS.batch_patience_seconds + 30)
    assert len(batch.waits) > turns
    assert batch.worked >= turns * LIMITS.batch_turn_seconds * 0.9
    longest = 3.0 + LOAD_SECONDS + LIMITS.batch_turn_seconds + 3.0 + LINE_SECONDS + LOAD_SECONDS + 1
    assert max(chat.wait for chat in chats[:7000]) <= longest


def test_a_more_urgent_batch_runs_first_and_the_other_one_is_not_forgotten() -> None:
    low, high = Batch("a", 200.0), Batch("b", 1e6, priority=5, arrives_at=50.0)
    Simulation(equal_models(), 1, batches=[low, high]).run(3600)
    assert high.waits[0] <= LINE_SECONDS + LOAD_SECONDS + 1
    assert low.is_done


def test_models_of_unequal_size_all_get_their_turn() -> None:
    sizes = dict(zip(NAMES, (1, 2, 3, 4, 5, 6), strict=True))
    models = [ServableModel(name=name, num_bytes=size) for name, size in sizes.items()]
    chats = random_chats(NAMES, WEIGHTS["uniform"], 1.0, SECONDS, seed=3)
    batches = [Batch(name, seconds=20.0) for name in NAMES]
    Simulation(models, 6, chats=chats, batches=batches).run(SECONDS + MOST_WAIT_OF_CHAT)
    assert max(chat.wait for chat in chats) <= MOST_WAIT_OF_CHAT * 1.5, "the largest one needs all of the memory"
    assert all(batch.is_done for batch in batches)


def test_a_pinned_model_stays_while_the_others_share_the_rest() -> None:
    models = [ServableModel(name=name, num_bytes=1, is_pinned=name == "f") for name in NAMES]
    chats = random_chats(NAMES, WEIGHTS["uniform"], 1.0, SECONDS, seed=4)
    simulation = Simulation(models, PLACES, chats=chats).run(SECONDS + 2 * MOST_WAIT_OF_CHAT)
    assert [name for _, name in simulation.loads].count("f") == 1
    assert all(chat.wait < 1 for chat in chats if chat.model == "f" and chat.arrives_at > LOAD_SECONDS)
    assert max(chat.wait for chat in chats) <= 2 * MOST_WAIT_OF_CHAT, "with one place for five models"


def test_a_model_leaves_after_its_keep_alive_and_comes_back_when_it_is_needed() -> None:
    chats = [Chat("a", 10.0), Chat("a", 40.0), Chat("a", 200.0)]
    simulation = Simulation(equal_models(keep_alive_seconds=60.0), PLACES, chats=chats).run(100)
    assert list(simulation.engines) == ["a"]
    simulation.run(60)
    assert not simulation.engines
    simulation.run(50)
    assert [round(at) for at, _ in simulation.loads] == [10, 200]


def test_a_model_that_fails_holds_up_no_other_and_is_tried_less_and_less_often() -> None:
    chats = [Chat("a", 1.0), *random_chats("bcdef", [1.0] * 5, 0.5, 1000, seed=5)]
    fails = Simulation(equal_models(), PLACES, chats=chats, fails=lambda name, now: name == "a" and now < 500).run(1200)
    assert max(chat.wait for chat in chats[1:]) <= MOST_WAIT_OF_CHAT + 5 * LOAD_SECONDS
    gaps = [later - earlier for (earlier, _), (later, _) in zip(fails.failures, fails.failures[1:], strict=False)]
    assert [gap >= pause for gap, pause in zip(gaps, (30, 60, 120, 240), strict=False)] == [True] * len(gaps)
    assert 3 <= len(fails.failures) <= 6
    assert chats[0].wait < 1000, "it is loaded by the first try after the failures have ended"


def test_an_admin_loads_reloads_and_unloads_while_chats_go_on() -> None:
    chats = random_chats("abc", [1.0] * 3, 0.5, SECONDS, seed=6)
    simulation = Simulation(equal_models(), PLACES, chats=chats).run(100)
    simulation.requested["f"] = simulation.now
    simulation.run(MOST_WAIT_OF_CHAT)
    assert "f" in [name for _, name in simulation.loads]
    resident = next(iter(simulation.engines))
    simulation.unwanted.add(resident)
    simulation.requested[resident] = simulation.now
    num_loads = len(simulation.loads)
    simulation.run(MOST_WAIT_OF_CHAT)
    assert resident in [name for _, name in simulation.loads[num_loads:]]
    assert not simulation.unwanted
    assert not simulation.requested
    simulation.run(SECONDS)
    assert max(chat.wait for chat in chats) <= MOST_WAIT_OF_CHAT


@pytest.mark.parametrize("seed", range(8))
def test_any_mixture_is_served_in_the_end_within_the_memory(seed: int) -> None:
    chosen = random.Random(seed)
    budget = chosen.randint(6, 14)
    models = [
        ServableModel(
            name=name,
            num_bytes=chosen.randint(0, 5),
            is_pinned=name == "a" and seed % 2 == 0,
            is_eager=chosen.random() < 0.5,
            keep_alive_seconds=chosen.choice([None, 0.1, 20.0]),
        )
        for name in NAMES
    ]
    budget += 5 if seed % 2 == 0 else 0
    seconds = {name: chosen.choice([0.2, 3.0, 15.0]) for name in NAMES}
    chats = random_chats(NAMES, WEIGHTS[chosen.choice(["uniform", "zipf"])], chosen.choice([0.1, 1.0, 3.0]), 300, seed)
    batches = [
        Batch(name, chosen.uniform(5, 60), priority=chosen.randint(0, 2), arrives_at=chosen.uniform(0, 300))
        for name in NAMES
    ]
    simulation = Simulation(models, budget, chats=chats, batches=batches, load_seconds=seconds.__getitem__)
    simulation.run(1500)
    assert all(chat.began_at is not None for chat in chats)
    assert all(batch.is_done for batch in batches)
    assert max(chat.wait for chat in chats) <= MOST_WAIT_OF_CHAT + 15 * len(NAMES)
