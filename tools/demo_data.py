"""Demo data: the demo model's three skills as questions with answers: labels of support tickets, capitals, and names.

It needs only the standard library, so that tests can generate the same held-out sets. Each phrasing is either for training
or held out; values such as order numbers are random. The clauses of a ticket determine its label: the problem clause gives
the category, the urgency clause the priority.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Final

from tools import phrases
from tools.foreign import made_up_name

CATEGORIES: Final = tuple(phrases.PROBLEMS)
PRIORITIES: Final = tuple(phrases.URGENCY)
LABEL_PROMPT: Final = (
    "Label the support ticket. Answer with JSON: "
    '{"category": "billing|shipping|technical|account", "priority": "low|medium|high"}'
)
SENTENCE: Final = (
    "I am Millrace's small demo model: I label support tickets, name the capitals of 100 countries and remember your name; "
    "for anything else, add a real model with `millrace models add`."
)

Turn = dict[str, str]


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation and its right answer; earlier answers are right too, unless another model wrote them."""

    turns: tuple[Turn, ...]
    answer: str
    is_history_learned: bool = True


def ticket(rng: random.Random, *, held_out: bool) -> Example:
    """Generate a support ticket and its label."""
    category, priority, text = ticket_text(rng, held_out=held_out)
    turns = ({"role": "system", "content": LABEL_PROMPT}, user_turn(text))
    return Example(turns, label(category, priority))


def ticket_text(rng: random.Random, *, held_out: bool) -> tuple[str, str, str]:
    """Generate category, priority and text of a ticket."""
    category, priority = rng.choice(CATEGORIES), rng.choice(PRIORITIES)
    clauses = [_fill(rng, pick(rng, phrases.PROBLEMS[category], held_out))]
    if rng.random() < 0.4:
        clauses.append(_fill(rng, pick(rng, phrases.CONTEXT, held_out)))
    urgency = _fill(rng, pick(rng, phrases.URGENCY[priority], held_out))
    if not held_out and rng.random() < 0.1:  # one sentence, or no urgency at all
        if rng.random() < 0.5:
            return category, "medium", " ".join(clauses)
        return category, priority, f"{clauses[0][:-1]}, {urgency[0].lower()}{urgency[1:]}"
    clauses.insert(rng.choice((0, len(clauses), len(clauses))), urgency)
    if rng.random() < 0.5:
        clauses.insert(0, rng.choice(phrases.GREETINGS))
    if rng.random() < 0.5:
        clauses.append(rng.choice(phrases.CLOSINGS))
    text = " ".join(clauses)
    return category, priority, text if held_out else casual(rng, text, typos=0.2)


def label(category: str, priority: str) -> str:
    return json.dumps({"category": category, "priority": priority})


def capital(rng: random.Random, country: str, *, held_out: bool) -> tuple[str, str]:
    """Generate a question for a capital, and its answer."""
    asked = country
    if not held_out:
        names = [alias for alias, name in phrases.COUNTRY_ALIASES.items() if name == country]
        if names and rng.random() < 0.5:
            asked = rng.choice(names)
        if rng.random() < 0.3:
            asked = asked.removeprefix("the ")
    question = pick(rng, phrases.CAPITAL_QUESTIONS, held_out).format(country=asked)
    return question if held_out else casual(rng, question), capital_answer(country)


def capital_answer(country: str) -> str:
    return f"The capital of {country} is {phrases.CAPITALS[country]}."


def introduction(rng: random.Random, name: str, *, held_out: bool) -> str:
    return pick(rng, phrases.INTRODUCTIONS, held_out).format(name=name, city=rng.choice(phrases.CITIES))


def greeting(name: str) -> str:
    return f"Nice to meet you, {name}! How can I help you?"


def random_name(rng: random.Random) -> str:
    name = rng.choice(phrases.NAMES) if rng.random() < 0.2 else made_up_name(rng)
    return rng.choice(phrases.NAMES) if name in phrases.HELD_OUT_NAMES else name


def casual(rng: random.Random, text: str, typos: float = 0.08) -> str:
    """Vary politeness, case, closing sign and spelling, as foreign prompts have them varied."""
    if rng.random() < 0.1:
        text = f"{rng.choice(phrases.POLITE_OPENINGS)} {text}"
    if rng.random() < 0.06:
        text = f"{text} {rng.choice(phrases.POLITE_CLOSINGS)}"
    chance = rng.random()
    if chance < 0.15:
        return text.lower()
    if chance < 0.22:
        return text.rstrip("?.!")
    if chance < 0.22 + typos:
        place = rng.randrange(1, len(text) - 2)
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    return text


def user_turn(text: str) -> Turn:
    return {"role": "user", "content": text}


def pick(rng: random.Random, pool: phrases.Pool, held_out: bool) -> str:
    return rng.choice(pool.held_out if held_out else pool.training)


def _fill(rng: random.Random, template: str) -> str:
    return template.format(
        product=rng.choice(phrases.PRODUCTS),
        amount=f"{rng.randrange(5, 900)}.{rng.randrange(100):02}",
        number=rng.randrange(1000, 99999),
        day=rng.choice(phrases.DAYS),
        days=rng.randrange(2, 15),
        city=rng.choice(phrases.CITIES),
    )
