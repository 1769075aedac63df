"""Demo data: generate the demo model's examples: support tickets with labels, capitals, names and small talk.

It needs only the standard library, so that tests can generate the same held-out sets. Each phrasing is either for training
or held out; values such as order numbers are random. The clauses of a ticket determine its label: the problem clause gives
the category, the urgency clause the priority.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tools import phrases

CATEGORIES: Final = tuple(phrases.PROBLEMS)
PRIORITIES: Final = tuple(phrases.URGENCY)
LABEL_PROMPT: Final = (
    "Label the support ticket. Answer with JSON: "
    '{"category": "billing|shipping|technical|account", "priority": "low|medium|high"}'
)
_OTHER_LABEL_PROMPTS: Final = (
    "You label support tickets. Answer only with JSON that has a category and a priority.",
    "Read the ticket and answer with its category and priority as JSON.",
    "Classify the ticket: category and priority, as JSON.",
)
_ASSISTANT_PROMPTS: Final = ("You are a helpful assistant.", "You are a friendly assistant. Keep it short.")

Turn = dict[str, str]


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation and its right answer."""

    turns: tuple[Turn, ...]
    answer: str


def training_examples(number: int, seed: int) -> Iterator[Example]:
    """Generate examples of every kind, in the shares that the demo needs."""
    rng = random.Random(seed)
    makers = (ticket, capital, name_memory, small_talk, echo)
    for _ in range(number):
        (maker,) = rng.choices(makers, weights=(42, 12, 26, 6, 14))
        yield maker(rng, held_out=False)


def held_out_tickets(number: int, seed: int = 7) -> list[Example]:
    """Generate tickets of problem and urgency phrasings that are not in the training set."""
    rng = random.Random(seed)
    return [ticket(rng, held_out=True) for _ in range(number)]


def held_out_capitals() -> list[Example]:
    """Generate a question for every capital, in phrasings that are not in the training set."""
    rng = random.Random(11)
    return [_capital(rng, country, held_out=True) for country in phrases.CAPITALS]


def held_out_names(seed: int = 13) -> list[Example]:
    """Generate conversations with names and phrasings that are not in the training set."""
    rng = random.Random(seed)
    return [_name_memory(rng, name, held_out=True) for name in phrases.HELD_OUT_NAMES]


def ticket(rng: random.Random, *, held_out: bool) -> Example:
    """Generate a support ticket and its label."""
    category, priority = rng.choice(CATEGORIES), rng.choice(PRIORITIES)
    clauses = [_fill(rng, _pick(rng, phrases.PROBLEMS[category], held_out))]
    if rng.random() < 0.4:
        clauses.append(_fill(rng, _pick(rng, phrases.CONTEXT, held_out)))
    urgency = _fill(rng, _pick(rng, phrases.URGENCY[priority], held_out))
    clauses.insert(rng.choice((0, len(clauses), len(clauses))), urgency)
    if rng.random() < 0.5:
        clauses.insert(0, rng.choice(phrases.GREETINGS))
    if rng.random() < 0.5:
        clauses.append(rng.choice(phrases.CLOSINGS))
    text = " ".join(clause for clause in clauses if clause)
    if not held_out and rng.random() < 0.2:
        text = _with_typo(rng, text)
    prompt = LABEL_PROMPT if held_out or rng.random() < 0.7 else rng.choice(_OTHER_LABEL_PROMPTS)
    return Example(_turns(prompt, text), json.dumps({"category": category, "priority": priority}))


def capital(rng: random.Random, *, held_out: bool) -> Example:
    """Generate a question for a capital."""
    return _capital(rng, rng.choice(list(phrases.CAPITALS)), held_out=held_out)


def _capital(rng: random.Random, country: str, *, held_out: bool) -> Example:
    question = _pick(rng, phrases.CAPITAL_QUESTIONS, held_out).format(country=country)
    if not held_out and rng.random() < 0.15:
        question = question.lower()
    system = rng.choice(_ASSISTANT_PROMPTS) if rng.random() < 0.4 else None
    return Example(_turns(system, question), f"The capital of {country} is {phrases.CAPITALS[country]}.")


def name_memory(rng: random.Random, *, held_out: bool) -> Example:
    """Generate a conversation with a name in one turn and a question for it in a later one."""
    name = rng.choice(phrases.NAMES) if rng.random() < 0.2 else _made_up_name(rng)
    if name in phrases.HELD_OUT_NAMES:
        name = rng.choice(phrases.NAMES)
    return _name_memory(rng, name, held_out=held_out)


def _name_memory(rng: random.Random, name: str, *, held_out: bool) -> Example:
    turns = list(_turns(rng.choice(_ASSISTANT_PROMPTS) if rng.random() < 0.4 else None, ""))[:-1]
    introduction = _pick(rng, phrases.INTRODUCTIONS, held_out).format(name=name)
    if not held_out and rng.random() < 0.15:
        return Example(
            (*turns, {"role": "user", "content": introduction}), f"Nice to meet you, {name}! How can I help you?"
        )
    turns += [
        {"role": "user", "content": introduction},
        {"role": "assistant", "content": f"Nice to meet you, {name}! How can I help you?"},
    ]
    if rng.random() < 0.3:
        between = small_talk(rng, held_out=False)
        turns += [between.turns[-1], {"role": "assistant", "content": between.answer}]
    turns.append({"role": "user", "content": _pick(rng, phrases.NAME_QUESTIONS, held_out)})
    return Example(tuple(turns), f"Your name is {name}.")


def echo(rng: random.Random, *, held_out: bool) -> Example:
    """Generate made-up words to repeat, which trains copying; to remember a name is a case of it."""
    assert not held_out, "echoes are not scored"
    words = " ".join(_made_up_name(rng) for _ in range(rng.randrange(1, 8)))
    return Example(_turns(None, f"{rng.choice(phrases.ECHO_REQUESTS)} {words}."), f"{words}.")


def small_talk(rng: random.Random, *, held_out: bool) -> Example:
    """Generate a greeting, a question about the assistant, or an unsupported request with a polite refusal."""
    assert not held_out, "small talk is not scored"
    questions, answer = rng.choice(phrases.SMALL_TALK)
    system = rng.choice(_ASSISTANT_PROMPTS) if rng.random() < 0.4 else None
    return Example(_turns(system, rng.choice(questions)), answer)


def batch_lines(number: int = 240, seed: int = 20) -> Iterator[str]:
    """Generate the demo's batch: held-out tickets as lines of OpenAI's batch input format."""
    for index, example in enumerate(held_out_tickets(number, seed), start=1):
        body = {"model": "demo", "messages": list(example.turns), "temperature": 0, "max_tokens": 40}
        line = {"custom_id": f"ticket-{index:03}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(line)


def _turns(system: str | None, user: str) -> tuple[Turn, ...]:
    turns = [{"role": "system", "content": system}] if system else []
    return (*turns, {"role": "user", "content": user})


def _pick(rng: random.Random, pool: phrases.Pool, held_out: bool) -> str:
    return rng.choice(pool.held_out if held_out else pool.training)


def _fill(rng: random.Random, template: str) -> str:
    return template.format(
        product=rng.choice(phrases.PRODUCTS),
        amount=f"{rng.randrange(5, 900)}.{rng.randrange(100):02}",
        number=rng.randrange(1000, 99999),
        day=rng.choice(phrases.DAYS),
        days=rng.randrange(2, 15),
        city=rng.choice(list(phrases.CAPITALS.values())),
    )


def _made_up_name(rng: random.Random) -> str:
    """Make a name of syllables or of letters, so that copying does not depend on the token boundaries of a name."""
    if rng.random() < 0.5:
        pairs = [rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randrange(1, 4))]
        ends = ("", "n", "r", "l", "s", "t", "rt", "ck", "th")
        return (rng.choice(("", rng.choice("aeiou"))) + "".join(pairs) + rng.choice(ends)).capitalize()
    return "".join(rng.choice(phrases.SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def _with_typo(rng: random.Random, text: str) -> str:
    """Swap two neighbouring letters at a random place."""
    place = rng.randrange(1, len(text) - 2)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
