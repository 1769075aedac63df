"""The tiny models have the properties that other tests rely on, on plain llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path

import llama_cpp as llama
import numpy as np
import pytest

from engine.backends.llama.tokenizer import LlamaTokenizer
from tests.support.loaded import loaded
from tests.support.tiny_models import WINDOW, TinyModel, write_tiny_model

Models = Mapping[TinyModel, Path]
GENERATORS = [model for model in TinyModel if model is not TinyModel.BERT]
PROMPT = "What does the miller count, one by one, in the mill by the river?"


class PlainRun:
    """One sequence, one token after another: the reference for every other way to compute."""

    def __init__(self, model: ctypes.c_void_p) -> None:
        parameters = llama.llama_context_default_params()
        parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = 512, 1, 1
        self.context = llama.llama_init_from_model(model, parameters)
        self.tokenizer = LlamaTokenizer(model)

    def greedy(self, tokens: list[int], num_tokens: int) -> list[int]:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        answer: list[int] = []
        for _ in range(num_tokens):
            answer.append(int(self.logits(answer[-1:] or tokens).argmax()))
        return answer

    def logits(self, tokens: list[int]) -> np.ndarray:
        row = (llama.llama_token * len(tokens))(*tokens)
        assert llama.llama_decode(self.context, llama.llama_batch_get_one(row, len(tokens))) == 0
        pointer = llama.llama_get_logits_ith(self.context, -1)
        logits = np.ctypeslib.as_array(pointer, shape=(self.tokenizer.num_vocab,))
        assert np.isfinite(logits).all()
        return logits


@pytest.fixture(params=GENERATORS)
def plain(request: pytest.FixtureRequest, tiny_models: Models) -> Iterator[PlainRun]:
    with loaded(tiny_models[request.param]) as model:
        run = PlainRun(model)
        yield run
        llama.llama_free(run.context)


def encode(plain: PlainRun, text: str) -> list[int]:
    return plain.tokenizer.encode(text, special=False, add_bos=False)


def test_greedy_answers_are_varied_printable_and_endless(plain: PlainRun) -> None:
    answer = plain.greedy(encode(plain, PROMPT), 60)
    text = b"".join(plain.tokenizer.piece(token) for token in answer).decode()
    assert len(set(answer)) >= 15
    assert text.isascii()
    assert text.isprintable()
    assert not any(plain.tokenizer.is_end(token) for token in answer)


def test_an_answer_depends_on_the_whole_prompt(plain: PlainRun) -> None:
    tokens = encode(plain, PROMPT)
    answers = [plain.greedy([*tokens[:at], 1, *tokens[at + 1 :]], 40) for at in range(0, len(tokens), 4)]
    assert all(answer != plain.greedy(tokens, 40) for answer in answers)


def test_a_repeated_run_gives_the_same_answer(plain: PlainRun) -> None:
    tokens = encode(plain, PROMPT)
    assert plain.greedy(tokens, 40) == plain.greedy(tokens, 40)


def test_each_has_its_own_kind_of_memory(tiny_models: Models) -> None:
    for name, path in tiny_models.items():
        with loaded(path) as model:
            assert llama.llama_model_is_recurrent(model) == (name is TinyModel.MAMBA)
            assert llama.llama_model_is_hybrid(model) == (name in (TinyModel.JAMBA, TinyModel.LFM2))
            assert llama.llama_model_n_swa(model) == (WINDOW if name is TinyModel.GEMMA3 else 0)


def test_they_are_small_and_written_identically_every_time(tiny_models: Models, tmp_path: Path) -> None:
    for name, path in tiny_models.items():
        assert path.stat().st_size < 1_000_000
        assert write_tiny_model(tmp_path / "again.gguf", name).read_bytes() == path.read_bytes()
