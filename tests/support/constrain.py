"""Grammars on the fake model's vocabulary, where a token is a byte."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from engine.backends.fake.tokenizer import FakeTokenizer, fake_grammar_tokenizer
from engine.structured.compiler import GrammarCompiler
from engine.structured.grammar import Grammar, GrammarState
from engine.types import Constraint, ConstraintKind

TOKENIZER = FakeTokenizer()
(END,) = TOKENIZER.encode("</s>", special=True, add_bos=False)
LABELS = {
    "type": "object",
    "properties": {"topic": {"enum": ["billing", "shipping"]}, "urgent": {"type": "boolean"}},
    "required": ["topic", "urgent"],
    "additionalProperties": False,
}


def make_grammars(**given: Any) -> GrammarCompiler:
    return GrammarCompiler(lambda: fake_grammar_tokenizer(TOKENIZER), num_vocab=TOKENIZER.num_vocab, **given)


def constraint(kind: str, text: object = "") -> Constraint:
    return Constraint(kind=ConstraintKind(kind), text=text if isinstance(text, str) else json.dumps(text))


def allowed_tokens(state: GrammarState) -> list[int]:
    row = np.zeros((TOKENIZER.num_vocab + 31) // 32, np.int32)
    state.fill_mask(row)
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()


def accepts(grammar: Grammar, text: str) -> bool:
    """True when the grammar allows the whole text as an answer; it must be a grammar without jumps."""
    state = grammar.start()
    for byte in text.encode():
        if not state.allows(byte):
            return False
        state.accept(byte)
    return state.allows(END)
