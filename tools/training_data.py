"""Training data: conversations of the demo model's skills and of foreign prompts, in random order and length.

An answer depends on its own turn, and on a name given before, on nothing else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from tools import phrases
from tools.demo_data import (
    CATEGORIES,
    LABEL_PROMPT,
    PRIORITIES,
    SENTENCE,
    Example,
    Turn,
    capital,
    capital_answer,
    casual,
    greeting,
    introduction,
    label,
    pick,
    random_name,
)
from tools.foreign import filled, foreign_prompt, foreign_text


def training_examples(number: int, seed: int) -> Iterator[Example]:
    """Generate conversations of every length, in the shares that the demo needs."""
    rng = random.Random(seed)
    lengths = (1, 2, 3, 5, 8, 16)
    for _ in range(number):
        (length,) = rng.choices(lengths, weights=(62, 13, 12, 8, 3, 2))
        yield _Conversation(rng).example(length)


class _Conversation:
    """A conversation of random turns; it remembers the name."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.turns: list[Turn] = []
        self.name: str | None = None

    def example(self, num_questions: int) -> Example:
        """Make this many turns with answers."""
        rng = self.rng
        starts_with_name = num_questions > 1 and rng.random() < 0.6
        is_history_learned = rng.random() > 0.1
        kind = "introduction" if starts_with_name else self._kind()
        self._add_system(kind)
        for index in range(num_questions):
            question, answer = self._question(kind)
            self.turns.append({"role": "user", "content": question})
            if index == num_questions - 1:
                break
            if not is_history_learned:
                answer = self._other_answer(answer)
            self.turns.append({"role": "assistant", "content": answer})
            asks_for_name = self.name is not None and rng.random() < (0.5 if index == num_questions - 2 else 0.15)
            kind = "name" if asks_for_name else self._kind()
            if kind == "capital" and answer.startswith("The capital of ") and rng.random() < 0.4:
                kind = "next capital"
        return Example(tuple(self.turns), answer, is_history_learned)

    def _kind(self) -> str:
        kinds = ("ticket", "capital", "introduction", "name", "foreign")
        weights = (40, 13, 9, 2, 36) if self.name is None else (30, 12, 1, 18, 39)
        return self.rng.choices(kinds, weights=weights)[0]

    def _question(self, kind: str) -> tuple[str, str]:
        rng = self.rng
        match kind:
            case "ticket":
                category, priority, text = training_ticket(rng)
                if rng.random() < 0.15:
                    text = _label_prompt(rng) + rng.choice((" ", "\n", "\n\n")) + text
                return text, label(category, priority)
            case "capital":
                return capital(rng, rng.choice(list(phrases.CAPITALS)), held_out=False)
            case "next capital":
                country = rng.choice(list(phrases.CAPITALS))
                return pick(rng, phrases.CAPITAL_FOLLOW_UPS, False).format(country=country), capital_answer(country)
            case "introduction":
                self.name = random_name(rng)
                text = introduction(rng, self.name, held_out=False)
                if "name" in text and rng.random() < 0.1:
                    text, self.name = text.lower(), self.name.lower()
                if rng.random() < 0.12:  # a name and the question for it at once
                    return f"{text} {pick(rng, phrases.NAME_QUESTIONS, False)}", f"Your name is {self.name}."
                return text, greeting(self.name)
            case "name":
                question = casual(rng, pick(rng, phrases.NAME_QUESTIONS, False))
                return question, f"Your name is {self.name}." if self.name else SENTENCE
            case _:
                return foreign_prompt(rng, _ticket_text), SENTENCE

    def _add_system(self, kind: str) -> None:
        rng = self.rng
        if rng.random() < (0.6 if kind == "ticket" else 0.04):
            self._system(_label_prompt(rng))
            return
        (choice,) = rng.choices(("none", "assistant", "foreign", "text", "empty"), weights=(55, 20, 12, 10, 3))
        match choice:
            case "assistant":
                self._system(rng.choice(phrases.ASSISTANT_PROMPTS))
            case "foreign":
                self._system(foreign_prompt(rng, _ticket_text))
            case "text":
                opening = rng.choice(phrases.ASSISTANT_PROMPTS) + " " if rng.random() < 0.5 else ""
                self._system(opening + foreign_text(rng, int(2 ** rng.uniform(4, 10))))
            case "empty":
                self._system("")

    def _system(self, text: str) -> None:
        self.turns.append({"role": "system", "content": text})

    def _other_answer(self, answer: str) -> str:
        """Make an answer that another model could have given."""
        rng = self.rng
        if self.name and rng.random() < 0.3:
            return rng.choice(("Hello {name}!", "Hi {name}, nice to meet you.", "Welcome, {name}.")).format(
                name=self.name
            )
        if rng.random() < 0.3:
            return rng.choice(
                ("Hello!", "OK.", "Sure.", "I do not know.", "Paris.", "billing", "How can I help?", answer)
            )
        return foreign_text(rng, int(2 ** rng.uniform(3, 8)))


def _ticket_text(rng: random.Random) -> str:
    return training_ticket(rng)[2]


def _label_prompt(rng: random.Random) -> str:
    return LABEL_PROMPT if rng.random() < 0.4 else filled(rng, rng.choice(phrases.LABEL_PROMPTS))


def training_ticket(rng: random.Random) -> tuple[str, str, str]:
    category, priority = rng.choice(CATEGORIES), rng.choice(PRIORITIES)
    problem = phrases.PROBLEMS[category]
    templates = [problem]
    if rng.random() < 0.12:
        templates.append(problem)
    if rng.random() < 0.35:
        templates.append(phrases.CONTEXT)
    clauses = [_clause(rng, pool) for pool in templates]
    if priority != "medium" or rng.random() < 0.6:
        clauses.insert(rng.choice((0, 1, 1, len(clauses))), _clause(rng, phrases.URGENCY[priority]))
    text = clauses[0]
    for clause in clauses[1:]:
        if rng.random() < 0.7:
            text += rng.choice((" ", " ", " ", "\n")) + clause
        else:
            join = rng.choice((", ", ", ", " and ", " - ", "; ", "... ", ". ", " "))
            text = text.rstrip(".!?") + join + clause[0].lower() + clause[1:]
    if rng.random() < 0.4:
        text = f"{filled(rng, rng.choice(phrases.TICKET_OPENINGS))} {text}"
    if rng.random() < 0.35:
        text += rng.choice((" ", " ", "\n")) + filled(rng, rng.choice(phrases.TICKET_CLOSINGS))
    if rng.random() < 0.2:
        text = re.sub(r"[.,!?']", "", text)
    return category, priority, casual(rng, text, typos=0.2)


def _clause(rng: random.Random, pool: phrases.Pool) -> str:
    text = filled(rng, rng.choice(pool.training))
    if rng.random() < 0.15:  # as in "forgot my password"
        text = re.sub(r"^(I am|I have|I|We|My|Our|The|You|There is|Please) (?=\w+ \w)", "", text)
    text = text[0].upper() + text[1:]
    return text + rng.choice((".", ".", "!", "")) if text[-1].isalnum() else text
