"""Demo data: the demo model's three skills as questions with answers: labels of support tickets, capitals, and names.

It needs only the standard library, so that tests can generate the same held-out sets. Each phrasing is either for training
or held out. The clauses of a ticket determine its label: its problem gives the category, its urgency the priority, which is
medium if nothing is said about it.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Final

from tools import phrases
from tools.foreign import chosen, made_up_name

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
    if chance < 0.17:
        return text.upper()
    if chance < 0.24:
        return text.rstrip("?.!") or text
    if chance < 0.24 + typos and len(text) > 3:
        place = rng.randrange(1, len(text) - 2)
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    return text


def user_turn(text: str) -> Turn:
    return {"role": "user", "content": text}


def pick(rng: random.Random, pool: phrases.Pool, held_out: bool) -> str:
    return chosen(rng, rng.choice(pool.held_out if held_out else pool.training))
