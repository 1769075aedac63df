"""The layout of memory follows what the prompts of a batch have in common."""

from __future__ import annotations

from engine.backends.fake.backend import FakeBackend, FakeDecoder
from engine.scheduler.layout import LayoutChoice, is_split_better
from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import MemoryTraits
from engine.types import Finished, Priority, Request, TokenPrompt
from tests.support.engine import Bench, make_sequence

SLOTS = 4
START = [1 + n % 7 for n in range(300)]
SPLIT = MemoryTraits(is_split=True, can_change_layout=True)


def prompts(number: int, shared: int, own: int) -> list[list[int]]:
    return [[*START[:shared], *(100 + (n * 31 + k) % 50 for k in range(own))] for n in range(number)]


def sequences(found: list[list[int]], **given: object) -> list[Sequence]:
    return [make_sequence(str(n), tokens, **{"max_tokens": 10, **given}) for n, tokens in enumerate(found)]


def requests(name: str, found: list[list[int]], priority: Priority = Priority.BATCH) -> list[Request]:
    return [
        Request(id=f"{name}{n}", prompt=TokenPrompt(tokens=tokens), max_tokens=6, priority=priority)
        for n, tokens in enumerate(found)
    ]


class Engine:
    """A fake engine whose memory can change its layout, and the layout after each step."""

    def __init__(self) -> None:
        self.decoder = FakeDecoder(slots=SLOTS, spare_slots=1, traits=SPLIT)
        self.bench = Bench(FakeBackend(self.decoder), slots=SLOTS, context_size=1024)
        self.layouts: list[bool] = []

    def run(self, *given: Request) -> dict[str, str]:
        self.bench.outputs.clear()
        for request in given:
            self.bench.add(request)
        while self.bench.engine.run_once():
            self.layouts.append(self.decoder.traits.is_split)
            self.bench.engine.scheduler.check_integrity()
        return {item.request_id: item.text for item in self.bench.outputs if isinstance(item, Finished)}


def test_a_long_shared_start_asks_for_a_shared_memory_and_unrelated_prompts_for_streams() -> None:
    assert is_split_better(sequences(prompts(8, shared=300, own=20))) is False
    assert is_split_better(sequences(prompts(8, shared=0, own=60))) is True
    assert is_split_better(sequences(prompts(8, shared=90, own=15))) is None, "it makes little difference"


def test_questions_on_many_documents_have_streams_and_the_border_of_two_groups_changes_nothing() -> None:
    documents = [[[k, *tokens] for tokens in prompts(4, shared=300, own=20)] for k in range(4)]
    assert is_split_better(sequences([tokens for document in documents for tokens in document])) is True
    assert is_split_better(sequences([tokens for document in documents[:2] for tokens in document])) is None


def test_long_answers_count_as_tokens_of_their_own() -> None:
    assert is_split_better(sequences(prompts(8, shared=120, own=10), max_tokens=2)) is False
    assert is_split_better(sequences(prompts(8, shared=120, own=10), max_tokens=None)) is True


def test_tenants_share_nothing() -> None:
    found = sequences(prompts(8, shared=300, own=20))
    for number, sequence in enumerate(found):
        sequence.tenant = str(number)
    assert is_split_better(found) is True


def test_a_batch_changes_the_layout_and_its_answers_stay_the_same() -> None:
    given = requests("q", prompts(12, shared=200, own=10))
    wanted = {request.id: Engine().run(request)[request.id] for request in given}
    engine = Engine()
    assert engine.run(*given) == wanted
    assert engine.layouts == [False] * len(engine.layouts), "from the first step on"
    unrelated = requests("u", [[k, *tokens] for k, tokens in enumerate(prompts(60, shared=0, own=40), start=1)])
    wanted = {request.id: Engine().run(request)[request.id] for request in unrelated}
    engine.layouts.clear()
    assert engine.run(*unrelated) == wanted
    assert all(engine.layouts)


def test_two_changes_are_many_sequences_apart() -> None:
    choice = LayoutChoice()
    alike, unrelated = (sequences(prompts(8, shared, own=40), priority=Priority.BATCH) for shared in (300, 0))
    for sequence in alike[:SLOTS]:
        choice.add(sequence)
    assert choice.is_due([], alike, slots=SLOTS, is_split=True)
    changes = []
    for number in range(1, 10 * SLOTS):
        choice.add(unrelated[0])
        if choice.is_due([], unrelated, slots=SLOTS, is_split=False):
            changes.append(number)
    assert changes == [8 * SLOTS]


def test_few_requests_leave_the_layout_as_it_is() -> None:
    engine = Engine()
    engine.run(*requests("q", prompts(SLOTS - 1, shared=200, own=10)))
    assert all(engine.layouts)


def test_chat_beside_a_batch_keeps_the_layout() -> None:
    engine = Engine()
    batch = requests("q", prompts(12, shared=200, own=10))
    engine.run(*requests("c", prompts(1, shared=0, own=5), Priority.CHAT), *batch)
    assert all(engine.layouts[:4]), "while the chat runs"
    assert not engine.layouts[-1]


def test_chats_alone_have_streams_again_without_waiting_for_the_change() -> None:
    engine = Engine()
    engine.run(*requests("q", prompts(12, shared=200, own=10)))
    engine.layouts.clear()
    for number in range(SLOTS):
        engine.run(*requests(f"c{number}-", prompts(1, shared=0, own=7), Priority.CHAT))
    assert not any(engine.layouts)
    engine.run(*requests("d", prompts(1, shared=0, own=7), Priority.CHAT))
    assert engine.layouts[-1]
