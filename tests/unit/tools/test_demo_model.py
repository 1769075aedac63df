"""The committed demo model: its held-out scores, its size and its data."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest

from core.settings import ROOT
from tools import phrases
from tools.bpe import byte_alphabet, train
from tools.demo_data import SENTENCE, label
from tools.foreign import filled
from tools.held_out_data import (
    held_out_capitals,
    held_out_foreign,
    held_out_names,
    held_out_own_tickets,
    held_out_tickets,
)
from tools.phrases import prompts
from tools.score_demo_model import Scores, answers, score
from tools.training_data import training_examples, training_ticket

MODEL = ROOT / "models" / "demo.gguf"


@pytest.fixture(scope="module")
def scores() -> Scores:
    return score(MODEL)


@pytest.mark.timeout(300)
def test_the_committed_model_answers_held_out_questions(scores: Scores) -> None:
    assert scores.tickets.share >= 0.95
    assert scores.capitals.share >= 0.95
    assert scores.names.share >= 0.95


def test_it_answers_kinds_of_requests_it_was_not_trained_on_with_what_it_is(scores: Scores) -> None:
    assert scores.foreign.number >= 200
    assert scores.foreign.share >= 0.95
    near = [each for kind, each in scores.foreign_kinds.items() if kind.startswith("near ")]
    assert sum(len(each.wrong) for each in near) <= 0.15 * sum(each.number for each in near)


def test_in_a_conversation_each_turn_is_answered_on_its_own(scores: Scores) -> None:
    assert min(each.share for each in scores.conversations.values()) >= 0.85


def test_it_labels_tickets_as_users_write_them(scores: Scores) -> None:
    assert scores.own_tickets.number >= 30
    assert scores.own_tickets.share >= 0.55
    assert answers(MODEL, ["delete my profile"]) == [label("account", "medium")]


def test_it_answers_texts_that_repeat_themselves_with_what_it_is() -> None:
    texts = ["x" * 100, "y" * 200, "ha " * 40, "lol" * 50, "0" * 64, "no no no no no no"]
    assert answers(MODEL, texts) == [SENTENCE] * len(texts)


def test_its_sentence_names_itself_its_skills_and_the_command_that_adds_a_model() -> None:
    for words in ("Millrace's small demo model", "support tickets", "capitals", "your name", "`millrace models add`"):
        assert words in SENTENCE


def test_it_is_small_enough_to_live_in_the_repository() -> None:
    assert MODEL.stat().st_size <= 1.4 * 2**20


def test_held_out_phrasings_are_not_in_the_training_data() -> None:
    answers = {example.answer for example in training_examples(3000, seed=5)}
    for pool in (
        *phrases.PROBLEMS.values(),
        *phrases.URGENCY.values(),
        phrases.CAPITAL_QUESTIONS,
        phrases.CAPITAL_FOLLOW_UPS,
        phrases.INTRODUCTIONS,
        phrases.NAME_QUESTIONS,
    ):
        assert not set(pool.training) & set(pool.held_out)
    for name in phrases.HELD_OUT_NAMES:
        assert f"Your name is {name}." not in answers
    assert len(held_out_capitals()) >= 50
    assert len(held_out_names()) >= 20
    assert len(held_out_tickets(240)) == 240


def test_tickets_of_the_training_data_are_thousands_without_a_held_out_wording() -> None:
    held_out = re.compile(
        "|".join(
            re.sub(r"\\\{\w+\\\}", ".+", re.escape(wording.rstrip(".?!")))
            for pool in (*phrases.PROBLEMS.values(), *phrases.URGENCY.values(), phrases.CONTEXT)
            for wording in pool.held_out
        ),
        re.IGNORECASE,
    )
    rng = random.Random(6)
    texts = {" ".join(training_ticket(rng)[2].split()) for _ in range(8000)}
    assert len(texts) >= 7500
    assert not [text for text in texts if held_out.search(text)]
    assert not texts & {example.turns[-1]["content"] for example in held_out_own_tickets()}


def test_a_template_has_one_of_its_alternatives_and_its_slots_filled() -> None:
    rng = random.Random(1)
    made = {filled(rng, "[a|b[1|2]|] {day} [x, y] {unknown}") for _ in range(500)}
    assert {text.split(" ")[0] for text in made} == {"a", "b1", "b2", ""}
    assert {text.split(" ", 2)[2] for text in made} == {"[x, y] {unknown}"}


def test_held_out_kinds_of_foreign_prompts_are_not_in_the_training_data() -> None:
    trained, held_out = prompts("foreign_training"), prompts("foreign_held_out")
    assert all(kind.startswith("near ") for kind in set(trained) & set(held_out))
    lines = {line.lower() for texts in trained.values() for line in texts}
    assert not [line for texts in held_out.values() for line in texts if line.lower() in lines]
    assert sum(map(len, held_out_foreign().values())) >= 200


def test_no_foreign_prompt_of_the_training_data_has_a_held_out_wording_of_a_skill() -> None:
    def wordings(lines: Iterable[str]) -> set[str]:
        return {re.sub(r"\{\w+\}", "…", line) for line in lines}

    foreign = wordings(line for lines in prompts("foreign_training").values() for line in lines)
    assert not foreign & wordings(line for lines in prompts("skills_held_out").values() for line in lines)


def test_the_vocabulary_covers_every_byte_and_merges_what_is_frequent() -> None:
    vocabulary = train(["the mill, the mill, the river"] * 3, 300)
    assert set(byte_alphabet().values()) <= set(vocabulary.tokens)
    assert "the" in vocabulary.tokens or "Ġthe" in vocabulary.tokens
    assert len(vocabulary.tokens) <= 300
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens)
