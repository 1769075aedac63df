"""Counting without weights says what the engine says."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path

import llama_cpp as llama
import pytest

from core.settings import ROOT
from engine.config import EngineConfig
from engine.counting import PromptCounter
from engine.errors import ModelFailed, PromptTooLong
from engine.llama.backend import LlamaBackend
from engine.llama.vocabulary import load_vocabulary
from engine.messages import ChatPrompt, Request, TextPrompt, TokenPrompt
from tests.engine.make import Bench, chat
from tests.engine.tiny_models import TinyModel

MODEL = ROOT / "models" / "demo.gguf"
CONTEXT = 128
REQUESTS = [
    chat("What is the capital of France?", "a question"),
    chat("Grüße an <|im_end|> 世界", "special spellings and wide characters"),
    Request(id="several messages", prompt=ChatPrompt(messages=[{"role": "user", "content": "Hi"}] * 3)),
    Request(id="plain text", prompt=TextPrompt(text="once upon a time")),
    Request(id="token ids", prompt=TokenPrompt(tokens=[5, 6, 7])),
]


@pytest.fixture(scope="module")
def bench() -> Bench:
    config = {"context_size": CONTEXT, "slots": 4}
    return Bench(LlamaBackend(EngineConfig(model="demo", endpoint="", model_path=str(MODEL), **config)), **config)


@pytest.fixture(scope="module")
def counter() -> PromptCounter:
    return PromptCounter(load_vocabulary(MODEL), None, CONTEXT)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.id)
def test_a_count_is_the_usage_of_the_real_engine(bench: Bench, counter: PromptCounter, request_: Request) -> None:
    bench.add(request_)
    assert counter.count(request_) == bench.run()[request_.id].usage.prompt_tokens


def test_a_prompt_that_cannot_fit_is_refused_without_an_engine(counter: PromptCounter) -> None:
    with pytest.raises(PromptTooLong, match="128"):
        counter.count(chat("word " * CONTEXT))


def test_a_template_of_the_operator_counts_instead_of_the_models_own() -> None:
    vocabulary = load_vocabulary(MODEL)
    bare = PromptCounter(vocabulary, "{{ messages[0]['content'] }}", CONTEXT)
    assert bare.count(chat("What?")) == len(vocabulary.encode("What?", special=False, add_bos=True))


def test_a_vocabulary_is_the_full_models(tiny_models: Mapping[TinyModel, Path]) -> None:
    for path in tiny_models.values():
        vocabulary = load_vocabulary(path)
        assert vocabulary.num_vocab == 288
        assert vocabulary.special_texts == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        assert vocabulary.chat_template


def test_memory_is_given_back_with_the_tokenizer(
    tiny_models: Mapping[TinyModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[object] = []
    free = llama.llama_model_free
    monkeypatch.setattr(llama, "llama_model_free", lambda model: (freed.append(model), free(model)))
    vocabulary = load_vocabulary(tiny_models[TinyModel.LLAMA])
    assert not freed
    del vocabulary
    gc.collect()
    assert len(freed) == 1


def test_a_missing_or_broken_file_is_said(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes()[:5000])
    for path, said in ((tmp_path / "no.gguf", "no model file"), (broken, "not a model")):
        with pytest.raises(ModelFailed, match=said):
            load_vocabulary(path)
