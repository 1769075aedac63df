"""Embeddings of tiny models against vectors that are pooled by hand."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import llama_cpp as llama
import numpy as np
import pytest
from llama_cpp._ggml import libggml

from engine.backends.llama import context
from engine.backends.llama.embedder import LlamaEmbedder
from engine.backends.llama.tokenizer import load_vocabulary
from engine.backends.vectors import normalised
from engine.config import EngineConfig, LoraAdapter, Pooling
from engine.embedding import EmbeddingQueue
from engine.types import Embedded, EmbedRequest
from tests.support.loaded import loaded
from tests.support.tiny_models import WIDTH, TinyModel, write_tiny_lora

Models = Mapping[TinyModel, Path]
# Prompts of different lengths, so that no two fit into a batch of equal sequences.
PROMPTS = [
    [70 + (7 * index + step) % 90 for step in range(length)] for index, length in enumerate((1, 40, 3, 17, 64, 2))
]


def embed(opened: LlamaEmbedder, prompts: list[list[int]], budget: int = 512) -> np.ndarray:
    """The vectors of these inputs, computed by a queue in steps of `budget` tokens: (inputs, dimensions)."""
    queue = EmbeddingQueue(opened)
    queue.add("c", EmbedRequest(id="r", inputs=[]), prompts)
    while True:
        step = queue.plan(budget)
        assert step is not None
        for _, ended in queue.compute(step):
            assert isinstance(ended, Embedded)
            return np.array([np.frombuffer(vector, "<f4") for vector in ended.vectors])


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
        pooled = embed(opened, PROMPTS)
    with loaded(tiny_models[model]) as pointer:
        by_hand = np.array([POOLED[pooling](token_vectors(pointer, prompt)) for prompt in PROMPTS])
    assert pooled.shape == (len(PROMPTS), WIDTH)
    assert np.allclose(pooled, normalised(by_hand), atol=2e-3)


@pytest.mark.parametrize("model", [TinyModel.LLAMA, TinyModel.BERT])
def test_a_context_or_a_step_of_any_size_gives_the_same_vectors(tiny_models: Models, model: TinyModel) -> None:
    with embedder(tiny_models[model]) as opened:
        expected = embed(opened, PROMPTS)
    for given in ({"context_size": 400}, {"context_size": 300, "prefill_tokens": 200}):
        with embedder(tiny_models[model], **given) as opened:
            assert np.allclose(embed(opened, PROMPTS), expected, atol=1e-4)


@pytest.mark.parametrize("model", [TinyModel.LLAMA, TinyModel.BERT])
def test_auto_pooling_averages_tokens_if_the_model_names_no_pooling(tiny_models: Models, model: TinyModel) -> None:
    with (
        embedder(tiny_models[model]) as automatic,
        embedder(tiny_models[model], pooling=Pooling.MEAN) as mean,
    ):
        assert np.array_equal(embed(automatic, PROMPTS), embed(mean, PROMPTS))


@pytest.mark.parametrize("model", TinyModel)
def test_a_batch_is_independent_of_the_last_and_keeps_its_order(tiny_models: Models, model: TinyModel) -> None:
    many = PROMPTS * 20
    with embedder(tiny_models[model]) as opened:
        vectors = embed(opened, many)
        assert np.allclose(vectors, np.tile(embed(opened, PROMPTS), (20, 1)), atol=2e-3)


def test_an_encoder_attends_to_later_tokens(tiny_models: Models) -> None:
    changes = {}
    for model in (TinyModel.LLAMA, TinyModel.BERT):
        with embedder(tiny_models[model], pooling=Pooling.CLS) as opened:
            first, second = embed(opened, [[70, 71, 72], [70, 71, 99]])
            changes[model] = float(np.abs(first - second).max())
    assert changes[TinyModel.LLAMA] < 1e-3 < changes[TinyModel.BERT]


@pytest.mark.parametrize("pooling", POOLED, ids=str)
@pytest.mark.parametrize("model", [model for model in TinyModel if model is not TinyModel.BERT])
def test_an_input_that_is_computed_in_pieces_has_the_same_vector(
    tiny_models: Models, model: TinyModel, pooling: Pooling
) -> None:
    prompts = [*PROMPTS, [70 + step % 90 for step in range(128)], [90 - step % 20 for step in range(100)]]
    with embedder(tiny_models[model], pooling=pooling) as opened:
        whole = embed(opened, prompts)
        for budget in (5, 24, 50):
            assert np.allclose(embed(opened, prompts, budget), whole, atol=2e-3)


def test_a_decode_ends_before_the_logits(tiny_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp would compute them for each token; the vocabulary of a small model is more than half of its weights."""
    stop, asked = context._stop_before_logits, []

    @llama.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator,unused-ignore]
    def spy(tensor: int, is_question: bool, data: object) -> bool:
        asked.append(libggml.ggml_get_name(tensor))
        return bool(stop(tensor, is_question, data))

    monkeypatch.setattr(context, "_stop_before_logits", spy)
    with embedder(tiny_models[TinyModel.LLAMA]) as opened:
        embed(opened, PROMPTS)
    assert asked[-1] == b"result_embd_pooled"
    assert b"result_output" not in asked


def test_an_encoder_computes_each_input_in_one_piece(tiny_models: Models) -> None:
    with embedder(tiny_models[TinyModel.BERT], prefill_tokens=32) as opened:
        assert not opened.can_split
        small = embed(opened, PROMPTS)
    with embedder(tiny_models[TinyModel.BERT]) as opened:
        assert np.allclose(small, embed(opened, PROMPTS), atol=2e-3)


def test_a_prompt_is_as_long_as_the_context_and_the_models_positions_allow(tiny_models: Models) -> None:
    with embedder(tiny_models[TinyModel.LLAMA]) as opened:
        assert opened.max_tokens == 128
        assert embed(opened, [[70] * 128]).shape == (1, WIDTH)
    with embedder(tiny_models[TinyModel.BERT], context_size=4096) as opened:
        assert opened.max_tokens == 512  # the encoder has no further positions
        assert load_vocabulary(tiny_models[TinyModel.BERT]).trained_context == 512, "the vocabulary alone has it too"


def test_adapters_change_embeddings_too(tiny_models: Models, tmp_path: Path) -> None:
    adapter = LoraAdapter(path=str(write_tiny_lora(tmp_path / "a.gguf")))
    with embedder(tiny_models[TinyModel.LLAMA]) as plain:
        without = embed(plain, PROMPTS)
    with embedder(tiny_models[TinyModel.LLAMA], lora=[adapter]) as changed:
        assert np.abs(embed(changed, PROMPTS) - without).max(axis=1).min() > 1e-2
