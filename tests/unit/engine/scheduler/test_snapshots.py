"""Places where prompts diverge stay reusable in memories that forget: those with a window, and states that cannot be trimmed.

The fake has a real memory that refuses a reuse of positions that are gone.
"""

from __future__ import annotations

import pytest

from engine.backends.fake.backend import FakeBackend, FakeDecoder
from engine.scheduler.slots import MemoryTraits
from engine.types import Finished, Request, SamplingParams, TokenPrompt
from tests.support.engine import Bench

WINDOW = MemoryTraits(window=50)
FORGETFUL = {
    "a window": WINDOW,
    "a window with slack": MemoryTraits(window=50, slack=50, is_split=True),
    "a state": MemoryTraits(can_trim=False),
    "a state in split memory": MemoryTraits(can_trim=False, is_split=True),
}
START = [n % 200 for n in range(80)]


def make_bench(traits: MemoryTraits, slots: int = 4, spare_slots: int = 1) -> Bench:
    decoder = FakeDecoder(slots=slots, spare_slots=spare_slots, traits=traits)
    return Bench(FakeBackend(decoder), slots=slots, context_size=1000, prefill_tokens=32)


def text(number: int, length: int = 150) -> list[int]:
    return [(number * 31 + n * 7) % 200 for n in range(length)]


def ask(bench: Bench, prompt: list[int], max_tokens: int = 5, tenant: str = "") -> Finished:
    sampling = SamplingParams(temperature=0)
    request = Request(
        id="r", prompt=TokenPrompt(tokens=prompt), sampling=sampling, max_tokens=max_tokens, tenant=tenant
    )
    bench.add(request)
    return bench.run()["r"]


def cached(bench: Bench, prompt: list[int], max_tokens: int = 5, tenant: str = "") -> int:
    return ask(bench, prompt, max_tokens, tenant).usage.cached_tokens


@pytest.fixture(params=FORGETFUL.values(), ids=list(FORGETFUL))
def traits(request: pytest.FixtureRequest) -> MemoryTraits:
    return request.param


def test_documents_after_a_shared_start_reuse_it_one_after_another(traits: MemoryTraits) -> None:
    bench = make_bench(traits)
    found = [cached(bench, [*START, *text(n)]) for n in range(5)]
    assert found == [0, 0, 80, 80, 80], "the second one shows where they diverge"


def test_a_start_that_was_a_prompt_of_its_own_is_reused_from_the_first_document_on() -> None:
    bench = make_bench(FORGETFUL["a window with slack"])
    ask(bench, [*START, 7])
    assert [cached(bench, [*START, *text(n)]) for n in range(4)] == [80] * 4


def test_a_history_that_was_continued_can_be_continued_again(traits: MemoryTraits) -> None:
    bench = make_bench(traits)
    first = ask(bench, START, max_tokens=1)
    assert first.usage.cached_tokens == 0
    assert [cached(bench, [*START, *text(n)]) for n in range(4)] == [80] * 4


def test_a_full_engine_makes_room_for_a_place_where_prompts_diverged(traits: MemoryTraits) -> None:
    bench = make_bench(traits)
    for n in range(9):
        ask(bench, text(n, 120))
    found = [cached(bench, [*START, *text(20 + n)]) for n in range(5)]
    assert found[2:] == [80] * 3


def test_two_starts_are_kept_side_by_side(traits: MemoryTraits) -> None:
    bench = make_bench(traits)
    other = [199, *START]
    found = [[cached(bench, [*start, *text(n)]) for start in (START, other)] for n in range(4)]
    assert found[2:] == [[80, 81], [80, 81]]


def test_as_many_conversations_as_slots_keep_their_histories(traits: MemoryTraits) -> None:
    bench = make_bench(traits)
    histories = [[n, *text(n, 60)] for n in range(4)]
    num_known = [0] * 4
    for turn in range(5):
        for n, history in enumerate(histories):
            finished = ask(bench, history, max_tokens=90)
            assert finished.usage.cached_tokens >= num_known[n]
            history += bench.encoder_tokens(finished.text)
            num_known[n] = len(history) - 1
            history += [turn, 5, 6]


@pytest.mark.parametrize("spare_slots", [0, 1])
def test_without_room_a_conversation_goes_on_in_place(spare_slots: int) -> None:
    bench = make_bench(WINDOW, slots=1, spare_slots=spare_slots)
    history = text(1, 60)
    for _ in range(4):
        finished = ask(bench, history, max_tokens=90)
        history += [*bench.encoder_tokens(finished.text), 5]
    assert cached(bench, history) >= len(history) - 2


def test_a_prompt_is_known_again_after_a_long_answer() -> None:
    bench = make_bench(FORGETFUL["a window with slack"])
    prompt = text(1)
    ask(bench, prompt, max_tokens=300)
    assert cached(bench, prompt) == len(prompt) - 1


def test_a_place_is_not_reused_by_another_tenant(traits: MemoryTraits) -> None:
    bench = make_bench(traits)
    for n in range(3):
        ask(bench, [*START, *text(n)], tenant="one")
    assert cached(bench, [*START, *text(3)], tenant="two") == 0
    assert cached(bench, [*START, *text(4)], tenant="one") == 80


def test_a_snapshot_that_nothing_used_is_evicted_before_a_history(traits: MemoryTraits) -> None:
    bench = make_bench(traits, slots=2, spare_slots=2)
    ask(bench, other := text(9, 100), max_tokens=1)
    ask(bench, START, max_tokens=1)
    ask(bench, [*START, *text(1)], max_tokens=1)
    fork = bench.engine.scheduler.evict()
    bench.backend.decoder.update_memory([fork], [])
    assert cached(bench, [*other, 5], max_tokens=1) == 100, "the history that was used longer ago is still there"
    assert cached(bench, [*START, *text(1), 5], max_tokens=1) == 230
