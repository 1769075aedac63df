"""Embeddings of tiny models against vectors that are pooled by hand, and the queue of requests."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import llama_cpp as llama
import numpy as np
import pytest

from engine.backends.base import Embedder
from engine.backends.fake.backend import FakeEmbedder
from engine.backends.fake.tokenizer import FakeTokenizer
from engine.backends.llama.embedder import LlamaEmbedder
from engine.backends.llama.tokenizer import load_vocabulary
from engine.backends.vectors import normalised, shortened
from engine.config import EngineConfig, LoraAdapter, Pooling
from engine.embedding import EmbeddingQueue, encode_inputs
from engine.errors import InvalidPrompt, PromptTooLong
from engine.types import Embedded, EmbedRequest, Failed, Priority, TextPrompt, TokenPrompt
from tests.support.loaded import loaded
from tests.support.tiny_models import WIDTH, TinyModel, write_tiny_lora

Models = Mapping[TinyModel, Path]
# Prompts of different lengths, so that no two fit into a batch of equal sequences.
PROMPTS = [
    [70 + (7 * index + step) % 90 for step in range(length)] for index, length in enumerate((1, 40, 3, 17, 64, 2))
]


@contextmanager
def embedder(path: Path, **given: object) -> Iterator[LlamaEmbedder]:
    with loaded(path) as model:
        opened = LlamaEmbedder(model, config(**given))
        try:
            yield opened
        finally:
            opened.close()


def config(**given: object) -> EngineConfig:
    values: dict[str, object] = {"model": "m", "endpoint": "", "context_size": 128, "threads": 1}
    return EngineConfig(**{**values, **given})  # type: ignore[arg-type]


def token_vectors(model: ctypes.c_void_p, prompt: list[int]) -> np.ndarray:
    """The vectors of llama.cpp for each token of a single prompt, without pooling: (tokens, WIDTH)."""
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 128
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.embeddings = True
    parameters.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
    context = llama.llama_init_from_model(model, parameters)
    try:
        row = (llama.llama_token * len(prompt))(*prompt)
        assert llama.llama_decode(context, llama.llama_batch_get_one(row, len(prompt))) == 0
        pointer = llama.llama_get_embeddings(context)
        return np.ctypeslib.as_array(pointer, shape=(len(prompt), WIDTH)).copy()
    finally:
        llama.llama_free(context)


POOLED = {
    Pooling.MEAN: lambda vectors: vectors.mean(axis=0),
    Pooling.LAST: lambda vectors: vectors[-1],
    Pooling.CLS: lambda vectors: vectors[0],
}


@pytest.mark.parametrize("pooling", POOLED, ids=str)
@pytest.mark.parametrize("model", TinyModel)
def test_a_vector_pools_the_tokens_of_its_prompt_only(tiny_models: Models, model: TinyModel, pooling: Pooling) -> None:
    with embedder(tiny_models[model], pooling=pooling) as opened:
        pooled = opened.embed(PROMPTS)
    with loaded(tiny_models[model]) as pointer:
        by_hand = np.array([POOLED[pooling](token_vectors(pointer, prompt)) for prompt in PROMPTS])
    assert pooled.shape == (len(PROMPTS), WIDTH)
    assert np.allclose(pooled, normalised(by_hand), atol=2e-3)


@pytest.mark.parametrize("model", [TinyModel.LLAMA, TinyModel.BERT])
def test_auto_pooling_averages_tokens_if_the_model_names_no_pooling(tiny_models: Models, model: TinyModel) -> None:
    with (
        embedder(tiny_models[model]) as automatic,
        embedder(tiny_models[model], pooling=Pooling.MEAN) as mean,
    ):
        assert np.array_equal(automatic.embed(PROMPTS), mean.embed(PROMPTS))


@pytest.mark.parametrize("model", TinyModel)
def test_a_batch_is_independent_of_the_last_and_keeps_its_order(tiny_models: Models, model: TinyModel) -> None:
    many = PROMPTS * 20
    with embedder(tiny_models[model]) as opened:
        vectors = opened.embed(many)
        assert np.allclose(vectors, np.tile(opened.embed(PROMPTS), (20, 1)), atol=2e-3)
        assert opened.embed([]).shape == (0, WIDTH)


def test_an_encoder_attends_to_later_tokens(tiny_models: Models) -> None:
    changes = {}
    for model in (TinyModel.LLAMA, TinyModel.BERT):
        with embedder(tiny_models[model], pooling=Pooling.CLS) as opened:
            first, second = opened.embed([[70, 71, 72], [70, 71, 99]])
            changes[model] = float(np.abs(first - second).max())
    assert changes[TinyModel.LLAMA] < 1e-3 < changes[TinyModel.BERT]


def test_a_prompt_that_is_too_long_is_refused_before_any_is_computed() -> None:
    asked = request(TokenPrompt(tokens=[70]), TokenPrompt(tokens=[70] * 129))
    with pytest.raises(PromptTooLong, match="129 tokens.* 128 at most") as refused:
        encode_inputs(asked, FakeTokenizer(), 128)
    assert refused.value.param == "input"
    assert len(encode_inputs(asked, FakeTokenizer(), 129)) == 2


def test_a_prompt_is_as_long_as_the_context_and_the_models_positions_allow(tiny_models: Models) -> None:
    with embedder(tiny_models[TinyModel.LLAMA]) as opened:
        assert opened.max_tokens == 128
        assert opened.embed([[70] * 128]).shape == (1, WIDTH)
    with embedder(tiny_models[TinyModel.BERT], context_size=4096) as opened:
        assert opened.max_tokens == 512  # the encoder has no further positions
        assert load_vocabulary(tiny_models[TinyModel.BERT]).trained_context == 512, "the vocabulary alone has it too"


def test_adapters_change_embeddings_too(tiny_models: Models, tmp_path: Path) -> None:
    adapter = LoraAdapter(path=str(write_tiny_lora(tmp_path / "a.gguf")))
    with embedder(tiny_models[TinyModel.LLAMA]) as plain:
        without = plain.embed(PROMPTS)
    with embedder(tiny_models[TinyModel.LLAMA], lora=[adapter]) as changed:
        assert np.abs(changed.embed(PROMPTS) - without).max(axis=1).min() > 1e-2


FAKE: Embedder = FakeEmbedder()


def request(*inputs: TextPrompt | TokenPrompt, dimensions: int | None = None) -> EmbedRequest:
    return EmbedRequest(id="r", inputs=list(inputs), dimensions=dimensions)


class BrokenEmbedder(FakeEmbedder):
    def embed(self, prompts: list[list[int]]) -> np.ndarray:
        raise RuntimeError("an unexpected error")


def test_an_unexpected_error_ends_its_request_and_not_the_queue() -> None:
    queue = EmbeddingQueue(BrokenEmbedder())
    queue.add("c", request(TextPrompt(text="a")), [[97]])
    ended = queue.run_chunk()
    assert isinstance(ended, Failed)
    assert (ended.code, queue.next_key) == ("engine_error", None)


def run_all(queue: EmbeddingQueue) -> list[Embedded | Failed]:
    """The results of the queue, in order."""
    results = []
    while queue.next_key is not None:
        if (ended := queue.run_chunk()) is not None:
            results.append(ended)
    return results


def result_of(asked: EmbedRequest) -> Embedded:
    """The result of the queue; a failure is raised as the error of the engine."""
    queue = EmbeddingQueue(FAKE)
    queue.add("c", asked, encode_inputs(asked, FakeTokenizer(), FAKE.max_tokens))
    (ended,) = run_all(queue)
    if isinstance(ended, Failed):
        raise InvalidPrompt(ended.message, param=ended.param)
    return ended


def vectors_of(asked: EmbedRequest) -> np.ndarray:
    embedded = result_of(asked)
    return np.array([np.frombuffer(vector, "<f4") for vector in embedded.vectors])


def test_an_answer_has_a_vector_of_length_one_for_each_input_and_counts_their_tokens() -> None:
    asked = request(TextPrompt(text="stone"), TokenPrompt(tokens=list(b"stone")), TextPrompt(text="water"))
    embedded = result_of(asked)
    assert (embedded.request_id, embedded.usage.prompt_tokens, embedded.usage.completion_tokens) == ("r", 17, 0)
    vectors = vectors_of(asked)
    assert vectors.shape == (3, FAKE.dimensions)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_fewer_dimensions_are_the_first_ones_at_length_one_again() -> None:
    whole = vectors_of(request(TextPrompt(text="stone")))
    short = vectors_of(request(TextPrompt(text="stone"), dimensions=8))
    assert short.shape == (1, 8)
    assert np.allclose(short, whole[:, :8] / np.linalg.norm(whole[:, :8]), atol=1e-6)
    assert np.array_equal(vectors_of(request(TextPrompt(text="stone"), dimensions=64)), whole)


def test_a_vector_of_zeros_stays_one() -> None:
    assert not shortened(normalised(np.zeros((1, 4), np.float32)), 2).any()


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (request(TextPrompt(text="a"), dimensions=0), "dimensions"),
        (request(TextPrompt(text="a"), dimensions=65), "dimensions"),
        (request(TokenPrompt(tokens=[])), "input"),
        (request(TokenPrompt(tokens=[9999])), "input"),
        (request(TokenPrompt(tokens=[-1])), "input"),
    ],
    ids=["no dimensions", "more dimensions than there are", "no tokens", "an unknown token", "a negative token"],
)
def test_invalid_requests_are_refused_with_their_param(asked: EmbedRequest, param: str) -> None:
    with pytest.raises(InvalidPrompt) as refused:
        vectors_of(asked)
    assert refused.value.param == param


def test_texts_with_similar_letters_have_similar_vectors_in_the_fake() -> None:
    stone, stones, water = vectors_of(request(*(TextPrompt(text=text) for text in ("stone", "stones", "dull mud"))))
    assert stone @ stones > 0.9 > stone @ water


def test_a_long_request_is_computed_in_chunks_and_chat_waits_only_for_one() -> None:
    queue = EmbeddingQueue(FAKE)
    long = EmbedRequest(id="long", inputs=[], priority=Priority.BATCH)
    later = EmbedRequest(id="later", inputs=[], priority=Priority.BATCH)
    queue.add("c", long, [[97]] * 100)
    assert queue.next_key == ("c", "long")
    assert queue.run_chunk() is None
    queue.add("c", later, [[97]])
    queue.add("c", request(TextPrompt(text="a")), [[97]])
    assert [ended.request_id for ended in run_all(queue)] == ["long", "r", "later"]


def test_cancelled_requests_are_not_computed() -> None:
    queue = EmbeddingQueue(FAKE)
    for client, name in (("c", "a"), ("c", "b"), ("d", "a")):
        queue.add(client, EmbedRequest(id=name, inputs=[]), [[97]])
    assert queue.cancel("c", ["a", "unknown"]) == ["a"]
    assert queue.cancel("d", None) == ["a"]
    assert [ended.request_id for ended in run_all(queue)] == ["b"]
