"""The queue of embedding requests on the fake: what shares a step, in which order, and what a failure costs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from engine.backends.base import InputPiece
from engine.backends.fake.backend import FakeEmbedder
from engine.backends.fake.tokenizer import FakeTokenizer
from engine.backends.vectors import Vectors, normalised, shortened
from engine.embedding import EmbeddingQueue, check_dimensions, encode_inputs
from engine.errors import DecodeFailed, InvalidPrompt, PromptTooLong
from engine.types import Embedded, EmbedRequest, Failed, Priority, TextPrompt, TokenPrompt

SHORT = list(b"stone")


def request(
    *inputs: TextPrompt | TokenPrompt,
    name: str = "r",
    dimensions: int | None = None,
    priority: Priority = Priority.CHAT,
    exclusive: bool = False,
) -> EmbedRequest:
    return EmbedRequest(id=name, inputs=list(inputs), dimensions=dimensions, priority=priority, exclusive=exclusive)


class Queue:
    """A queue whose steps the test runs. `steps` has the ids of the requests in each step."""

    def __init__(self, embedder: FakeEmbedder | None = None) -> None:
        self.embedder = embedder or FakeEmbedder()
        self.queue = EmbeddingQueue(self.embedder)
        self.steps: list[list[str]] = []
        self.results: dict[str, Embedded | Failed] = {}

    def add(self, name: str, *prompts: list[int], batch: bool = False, exclusive: bool = False) -> None:
        priority = Priority.BATCH if batch else Priority.CHAT
        self.queue.add("c", request(name=name, priority=priority, exclusive=exclusive), list(prompts))

    def step(self, budget: int = 512, *, with_batch: bool = True) -> bool:
        step = self.queue.plan(budget, with_batch=with_batch)
        if step is None:
            return False
        self.steps.append([request_id for _, request_id in step.keys])
        self.results |= {ended.request_id: ended for _, ended in self.queue.compute(step)}
        return True

    def run(self, budget: int = 512) -> list[str]:
        """Run to the end; return the ids of the requests in the order in which they ended."""
        while self.step(budget):
            pass
        return list(self.results)


def vectors_of(ended: Embedded | Failed) -> np.ndarray:
    assert isinstance(ended, Embedded)
    return np.array([np.frombuffer(vector, "<f4") for vector in ended.vectors])


def result_of(asked: EmbedRequest) -> Embedded:
    queue = Queue()
    check_dimensions(asked, queue.embedder.dimensions)
    queue.queue.add("c", asked, encode_inputs(asked, FakeTokenizer(), queue.embedder.max_tokens))
    queue.run()
    ended = queue.results["r"]
    assert isinstance(ended, Embedded)
    return ended


def test_an_answer_has_a_vector_of_length_one_for_each_input_and_counts_their_tokens() -> None:
    embedded = result_of(request(TextPrompt(text="stone"), TokenPrompt(tokens=SHORT), TextPrompt(text="water")))
    assert (embedded.request_id, embedded.usage.prompt_tokens, embedded.usage.completion_tokens) == ("r", 17, 0)
    vectors = vectors_of(embedded)
    assert vectors.shape == (3, FakeEmbedder.dimensions)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_fewer_dimensions_are_the_first_ones_at_length_one_again() -> None:
    whole = vectors_of(result_of(request(TextPrompt(text="stone"))))
    short = vectors_of(result_of(request(TextPrompt(text="stone"), dimensions=8)))
    assert short.shape == (1, 8)
    assert np.allclose(short, whole[:, :8] / np.linalg.norm(whole[:, :8]), atol=1e-6)
    assert np.array_equal(vectors_of(result_of(request(TextPrompt(text="stone"), dimensions=64))), whole)


def test_a_vector_of_zeros_stays_one() -> None:
    assert not shortened(normalised(np.zeros((1, 4), np.float32)), 2).any()


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (request(TextPrompt(text="a"), dimensions=0), "dimensions"),
        (request(TextPrompt(text="a"), dimensions=65), "dimensions"),
        (request(), "input"),
        (request(TokenPrompt(tokens=[])), "input"),
        (request(TokenPrompt(tokens=[9999])), "input"),
        (request(TokenPrompt(tokens=[-1])), "input"),
    ],
    ids=["no dimensions", "more dimensions than there are", "no input", "no tokens", "unknown token", "negative token"],
)
def test_invalid_requests_are_refused_with_their_param(asked: EmbedRequest, param: str) -> None:
    with pytest.raises(InvalidPrompt) as refused:
        result_of(asked)
    assert refused.value.param == param


def test_an_input_that_is_too_long_is_refused_before_any_is_computed() -> None:
    asked = request(TokenPrompt(tokens=[70]), TokenPrompt(tokens=[70] * 129))
    with pytest.raises(PromptTooLong, match="129 tokens.* 128 at most") as refused:
        encode_inputs(asked, FakeTokenizer(), 128)
    assert refused.value.param == "input"
    assert len(encode_inputs(asked, FakeTokenizer(), 129)) == 2


def test_ids_of_another_tokenizer_are_refused_with_the_setting_of_the_client_that_sends_them() -> None:
    asked = EmbedRequest(id="r", inputs=[TokenPrompt(tokens=[100_276])])
    with pytest.raises(InvalidPrompt, match="another tokenizer.*check_embedding_ctx_length=False"):
        encode_inputs(asked, FakeTokenizer(), 128)


def test_texts_with_similar_letters_have_similar_vectors_in_the_fake() -> None:
    asked = request(*(TextPrompt(text=text) for text in ("stone", "stones", "dull mud")))
    stone, stones, water = vectors_of(result_of(asked))
    assert stone @ stones > 0.9 > stone @ water


def test_a_step_is_limited_in_tokens_and_no_request_is_computed_at_once() -> None:
    queue = Queue()
    queue.add("long", *[[97] * 1900] * 32)
    queue.run()
    assert max(queue.embedder.num_computed) == 512
    assert sum(queue.embedder.num_computed) == 32 * 1900
    assert len(queue.embedder.num_computed) == -(-32 * 1900 // 512), "parts of the next input fill each step"


def test_inputs_of_many_requests_share_a_step() -> None:
    queue = Queue(FakeEmbedder(slots=200))
    for number in range(100):
        queue.add(f"r{number}", SHORT, batch=number % 2 == 0)
    assert queue.step()
    assert queue.embedder.num_computed == [500]
    assert len(queue.results) == 100


def test_a_step_has_no_more_inputs_than_slots() -> None:
    queue = Queue(FakeEmbedder(slots=8))
    queue.add("r", *[SHORT] * 20)
    queue.run()
    assert queue.embedder.num_computed == [40, 40, 20]


def test_chat_goes_before_batch_and_each_in_order_of_arrival() -> None:
    queue = Queue()
    queue.add("batch", *[[97] * 500] * 3, batch=True)
    queue.add("later batch", [97] * 500, batch=True)
    assert queue.step()
    queue.add("chat", [97] * 500)
    queue.add("later chat", [97] * 500)
    assert queue.run() == ["chat", "later chat", "batch", "later batch"]


def test_without_batch_only_chat_is_computed() -> None:
    queue = Queue()
    queue.add("batch", SHORT, batch=True)
    assert not queue.step(with_batch=False)
    queue.add("chat", SHORT)
    assert queue.step(with_batch=False)
    assert list(queue.results) == ["chat"]


def test_an_input_waits_for_a_step_that_takes_it_whole_unless_it_is_longer_than_any() -> None:
    queue = Queue()
    queue.add("r", [97] * 300, [98] * 300, [99] * 600)
    queue.run()
    assert queue.embedder.num_computed == [300, 512, 388]


def test_an_unfinished_input_gives_way_to_chat_and_goes_on_where_it_was() -> None:
    queue = Queue()
    queue.add("batch", [97] * 1500, batch=True)
    assert queue.step()
    queue.add("chat", [98] * 400)
    assert queue.run() == ["chat", "batch"]
    assert sum(queue.embedder.num_computed) == 1900, "no token is computed twice"


def test_an_unfinished_input_starts_again_when_a_long_one_of_chat_needs_its_memory() -> None:
    queue = Queue()
    queue.add("batch", [97] * 2048, batch=True)
    assert queue.step()
    assert queue.step()
    queue.add("chat", [98] * 2048)
    assert queue.run() == ["chat", "batch"]
    assert sum(queue.embedder.num_computed) == 1024 + 2 * 2048


def test_an_input_that_ends_in_a_step_is_not_started_again_for_the_next_one() -> None:
    queue = Queue()
    queue.add("a", [97] * 2040)
    queue.add("b", [98] * 2048)
    for budget in (512, 512, 512, 500):
        assert queue.step(budget)
    assert queue.run() == ["a", "b"]
    assert sum(queue.embedder.num_computed) == 2040 + 2048


def test_vectors_do_not_depend_on_steps_neighbours_or_interruptions() -> None:
    rng = random.Random(1)
    prompts = {f"r{n}": [rng.choices(range(256), k=rng.choice((1, 7, 60, 300, 700)))] * 2 for n in range(40)}
    alone = {}
    for name, given in prompts.items():
        queue = Queue(FakeEmbedder(700))
        queue.add(name, *given)
        queue.run()
        alone[name] = vectors_of(queue.results[name])
    together = Queue(FakeEmbedder(700, slots=6))
    for name, given in prompts.items():
        together.add(name, *given, batch=rng.random() < 0.5, exclusive=rng.random() < 0.1)
        together.step(rng.choice((1, 30, 128, 512)), with_batch=rng.random() < 0.5)
        if rng.random() < 0.2:
            together.add("cancelled", [97] * 700, batch=rng.random() < 0.5)
            together.step(100)
            together.queue.cancel("c", ["cancelled"])
    together.run(200)
    for name, vectors in alone.items():
        assert np.allclose(vectors_of(together.results[name]), vectors, atol=1e-6)


def test_an_input_that_cannot_be_split_is_a_step_of_its_own() -> None:
    queue = Queue(FakeEmbedder(step_tokens=100, can_split=False))
    queue.add("r", [97] * 60, [97] * 60, [97] * 2000, [97] * 60)
    queue.run(budget=25)
    assert queue.embedder.num_computed == [60, 60, 2000, 60]


def test_a_cancelled_request_is_not_computed_and_leaves_its_memory() -> None:
    queue = Queue()
    for client, name in (("c", "a"), ("c", "b"), ("d", "a")):
        queue.queue.add(client, EmbedRequest(id=name, inputs=[]), [[97] * 2000])
    assert queue.step()
    assert queue.queue.cancel("c", ["a", "unknown"]) == ["a"]
    assert queue.queue.cancel("d", None) == ["a"]
    assert queue.run() == ["b"]
    assert sum(queue.embedder.num_computed) == 512 + 2000


def test_an_exclusive_request_shares_no_step_and_keeps_its_place() -> None:
    queue = Queue()
    for name in ("a", "suspect", "b", "c"):
        queue.add(name, SHORT, SHORT, exclusive=name == "suspect")
    queue.run()
    assert queue.steps == [["a"], ["suspect"], ["b", "c"]]


class Failing(FakeEmbedder):
    """Fails steps, or gives no numbers for inputs, with the letter `!`; `error` is what a step raises."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error

    def embed(self, pieces: list[InputPiece]) -> Vectors:
        if self.error is not None and any(ord("!") in piece.tokens for piece in pieces):
            raise self.error
        vectors = super().embed(pieces)
        vectors[[ord("!") in piece.tokens for piece in pieces if piece.is_last]] = np.nan
        return vectors


@pytest.mark.parametrize("error", [None, DecodeFailed("it returned -3"), RuntimeError("a bug")], ids=str)
def test_an_input_that_fails_costs_its_request_and_no_other(error: Exception | None) -> None:
    queue = Queue(Failing(error))
    queue.add("a", SHORT)
    queue.add("bad", list(b"good"), list(b"bad!"), list(b"good"))
    queue.add("b", SHORT, batch=True)
    queue.run()
    assert {name: type(ended) for name, ended in queue.results.items()} == {
        "a": Embedded,
        "bad": Failed,
        "b": Embedded,
    }
    assert queue.results["bad"].code == "engine_error"  # type: ignore[union-attr]
    queue.add("after", SHORT)
    assert queue.run()[-1] == "after"


def test_a_failed_step_restarts_the_unfinished_input_of_another_request() -> None:
    queue = Queue(Failing(DecodeFailed("it returned -3")))
    queue.add("batch", [97] * 1500, batch=True)
    assert queue.step()
    queue.add("bad", list(b"bad!"))
    assert queue.run() == ["bad", "batch"]
    assert isinstance(queue.results["batch"], Embedded)


def test_a_lack_of_memory_is_passed_on() -> None:
    queue = Queue(Failing(MemoryError()))
    queue.add("bad", list(b"bad!"))
    with pytest.raises(MemoryError):
        queue.step()
