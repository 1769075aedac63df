"""Grammars on the demo model's own vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from core.settings import ROOT
from engine.backends.llama.backend import LlamaBackend
from engine.backends.llama.grammar import grammar_tokenizer
from engine.backends.llama.tokenizer import LlamaTokenizer
from engine.config import EngineConfig
from engine.structured.compiler import GrammarCompiler
from tests.support.constrain import LABELS, constraint


@pytest.fixture(scope="module")
def tokenizer() -> LlamaTokenizer:
    model = str(ROOT / "models" / "demo.gguf")
    return LlamaBackend(EngineConfig(model="demo", endpoint="", model_path=model, context_size=64, slots=1)).tokenizer


@pytest.fixture(scope="module")
def grammars(tokenizer: LlamaTokenizer) -> Iterator[GrammarCompiler]:
    grammars = GrammarCompiler(lambda: grammar_tokenizer(tokenizer), num_vocab=tokenizer.num_vocab)
    yield grammars
    grammars.close()


def test_the_grammar_vocabulary_has_the_width_of_the_logits_and_every_end_token(tokenizer: LlamaTokenizer) -> None:
    built = grammar_tokenizer(tokenizer)
    assert built.vocab_size == tokenizer.num_vocab
    assert sorted(built.eos_tokens) == tokenizer.end_tokens
    assert len(tokenizer.end_tokens) > 1


def test_random_tokens_under_a_schema_are_json_by_it(grammars: GrammarCompiler, tokenizer: LlamaTokenizer) -> None:
    grammar = grammars.compile(constraint("json_schema", LABELS))
    draw = np.random.default_rng(1)
    row = np.zeros((tokenizer.num_vocab + 31) // 32, np.int32)
    sampled = 0
    for _ in range(20):
        state = grammar.start()
        answer = state.jump()
        while not state.is_finished:
            state.fill_mask(row)
            allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
            answer.append(int(draw.choice(allowed)))
            answer += state.accept(answer[-1])
            sampled += 1
        parsed = json.loads(b"".join(tokenizer.piece(token) for token in answer))
        assert parsed["topic"] in LABELS["properties"]["topic"]["enum"]  # type: ignore[index]
        assert isinstance(parsed["urgent"], bool)
    assert sampled <= 20 * 8, "what is forced is not sampled"


def test_forced_tokens_are_those_the_tokenizer_would_have_chosen(
    grammars: GrammarCompiler, tokenizer: LlamaTokenizer
) -> None:
    text = "The capital of France is Paris."
    state = grammars.compile(constraint("choice", [text])).start()
    forced = state.jump()
    assert forced == tokenizer.encode(text, special=False, add_bos=False)[: len(forced)]
    assert len(forced) > 3


def test_a_control_tokens_spelling_is_text(grammars: GrammarCompiler, tokenizer: LlamaTokenizer) -> None:
    state = grammars.compile(constraint("choice", ["a<|im_end|>b"])).start()
    tokens = state.jump()
    row = np.zeros((tokenizer.num_vocab + 31) // 32, np.int32)
    while not state.is_finished:
        state.fill_mask(row)
        tokens.append(int(np.unpackbits(row.view(np.uint8), bitorder="little").argmax()))
        tokens += state.accept(tokens[-1])
    assert b"".join(tokenizer.piece(token) for token in tokens) == b"a<|im_end|>b"
    assert not set(tokens) & set(tokenizer.end_tokens)
