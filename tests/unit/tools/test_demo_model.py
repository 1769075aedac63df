"""The committed demo model: its held-out scores, its size and its data."""

from __future__ import annotations

import pytest

from core.settings import ROOT
from tools import phrases
from tools.bpe import byte_alphabet, train
from tools.demo_data import held_out_capitals, held_out_names, held_out_tickets, training_examples
from tools.score_demo_model import score

MODEL = ROOT / "models" / "demo.gguf"


@pytest.mark.timeout(300)
def test_the_committed_model_answers_held_out_questions() -> None:
    scores = score(MODEL)
    assert scores.tickets >= 0.95
    assert scores.capitals >= 0.95
    assert scores.names >= 0.85


def test_it_is_small_enough_to_live_in_the_repository() -> None:
    assert MODEL.stat().st_size <= 4 * 2**20


def test_held_out_phrasings_are_not_in_the_training_data() -> None:
    answers = {example.answer for example in training_examples(3000, seed=5)}
    for pool in (
        *phrases.PROBLEMS.values(),
        *phrases.URGENCY.values(),
        phrases.CAPITAL_QUESTIONS,
        phrases.NAME_QUESTIONS,
    ):
        assert not set(pool.training) & set(pool.held_out)
    for name in phrases.HELD_OUT_NAMES:
        assert f"Your name is {name}." not in answers
    assert len(held_out_capitals()) >= 50
    assert len(held_out_names()) >= 20
    assert len(held_out_tickets(240)) == 240


def test_the_vocabulary_covers_every_byte_and_merges_what_is_frequent() -> None:
    vocabulary = train(["the mill, the mill, the river"] * 3, 300)
    assert set(byte_alphabet().values()) <= set(vocabulary.tokens)
    assert "the" in vocabulary.tokens or "Ġthe" in vocabulary.tokens
    assert len(vocabulary.tokens) <= 300
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens)
