"""Held-out data: what the demo model is scored on, and the demo's batch; none of it is in the training data."""

from __future__ import annotations

import csv
import io
import json
import random
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
    greeting,
    introduction,
    label,
    pick,
    user_turn,
)
from tools.phrases import prompts


def held_out_tickets(number: int, seed: int = 7) -> list[Example]:
    """Generate tickets of problem and urgency phrasings that are not in the training set."""
    rng = random.Random(seed)
    return [ticket(rng) for _ in range(number)]


def held_out_own_tickets() -> list[Example]:
    """List tickets as users write them, without a prompt that asks for labels."""
    lines = (line.split(maxsplit=2) for line in prompts("skills_held_out")["tickets in own words"])
    return [Example((user_turn(text),), label(category, priority.rstrip(":"))) for category, priority, text in lines]


def ticket(rng: random.Random) -> Example:
    """Generate a support ticket and its label."""
    category, priority, text = _ticket_text(rng)
    turns = ({"role": "system", "content": LABEL_PROMPT}, user_turn(text))
    return Example(turns, label(category, priority))


def held_out_capitals() -> list[Example]:
    """Generate a question for every capital, in phrasings that are not in the training set."""
    rng = random.Random(11)
    questions = [capital(rng, country, held_out=True) for country in phrases.CAPITALS]
    return [Example((*_held_out_system(rng), user_turn(question)), answer) for question, answer in questions]


def held_out_names(seed: int = 13) -> list[Example]:
    """Generate conversations with names and phrasings that are not in the training set."""
    rng = random.Random(seed)
    examples = []
    for name in (*phrases.HELD_OUT_NAMES, *phrases.HELD_OUT_NAMES):
        turns = [*_held_out_system(rng), user_turn(introduction(rng, name, held_out=True))]
        turns.append({"role": "assistant", "content": greeting(name)})
        if rng.random() < 0.3:
            turns += [user_turn(rng.choice(_held_out_prompts())), {"role": "assistant", "content": SENTENCE}]
        turns.append(user_turn(pick(rng, phrases.NAME_QUESTIONS, True)))
        examples.append(Example(tuple(turns), f"Your name is {name}."))
    return examples


def held_out_foreign() -> dict[str, list[Example]]:
    """List the foreign prompts by kind; none of these kinds is in the training set."""
    kinds = prompts("foreign_held_out")
    return {kind: [Example((user_turn(text),), SENTENCE) for text in texts] for kind, texts in kinds.items()}


def held_out_conversations(number: int = 120, seed: int = 17) -> dict[str, list[Example]]:
    """Generate conversations of up to 900 tokens, by the kind of the last turn; any kind of turn comes before it."""
    rng = random.Random(seed)
    kinds: dict[str, list[Example]] = {}
    for index in range(number):
        kind = ("ticket", "capital", "name", "foreign")[index % 4]
        name = rng.choice(phrases.HELD_OUT_NAMES)
        turns: list[Turn] = []
        if rng.random() < 0.5:
            turns.append({"role": "system", "content": rng.choice(_held_out_prompts())})
        if kind == "name":
            turns += [
                user_turn(introduction(rng, name, held_out=True)),
                {"role": "assistant", "content": greeting(name)},
            ]
        for _ in range(rng.randrange(1, 12)):
            turns += _held_out_exchange(rng, rng.choice(("ticket", "capital", "foreign")))
        if kind == "name":
            question, answer = pick(rng, phrases.NAME_QUESTIONS, True), f"Your name is {name}."
        else:
            question, answer = (turn["content"] for turn in _held_out_exchange(rng, kind))
        kinds.setdefault(f"{kind} in a conversation", []).append(Example((*turns, user_turn(question)), answer))
    return kinds | {"foreign prompts of up to 900 tokens": [_long_foreign(rng) for _ in range(30)]}


def _long_foreign(rng: random.Random) -> Example:
    length = rng.randrange(200, 1800)
    text = ""
    while len(text) < length:
        text += rng.choice(_held_out_prompts()) + rng.choice((" ", "\n", "\n\n"))
    return Example((user_turn(text[:length]),), SENTENCE)


def foreign_again(rng: random.Random) -> Example:
    """Generate two foreign prompts in a conversation, so that the second answer repeats the first."""
    first, second = rng.sample(_held_out_prompts(), 2)
    return Example((user_turn(first), {"role": "assistant", "content": SENTENCE}, user_turn(second)), SENTENCE)


def batch_table(number: int = 240, seed: int = 20) -> str:
    """Generate the tickets of the demo's batch as a CSV file with the columns id and text."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("id", "text"))
    for index, example in enumerate(held_out_tickets(number, seed), start=1):
        writer.writerow((f"ticket-{index:03}", example.turns[-1]["content"]))
    return table.getvalue()


def batch_lines(number: int = 240, seed: int = 20) -> Iterator[str]:
    """Generate the demo's batch: held-out tickets as lines of OpenAI's batch input format."""
    for index, example in enumerate(held_out_tickets(number, seed), start=1):
        body = {"model": "demo", "messages": list(example.turns), "temperature": 0, "max_tokens": 40}
        line = {"custom_id": f"ticket-{index:03}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(line)


def _held_out_prompts() -> list[str]:
    """List the foreign prompts in ASCII, of which a token is known to have some characters."""
    texts = [text for texts in prompts("foreign_held_out").values() for text in texts]
    return [text for text in texts if text.isascii()]


def _held_out_system(rng: random.Random) -> list[Turn]:
    return [{"role": "system", "content": rng.choice(phrases.ASSISTANT_PROMPTS)}] if rng.random() < 0.4 else []


def _held_out_exchange(rng: random.Random, kind: str) -> list[Turn]:
    match kind:
        case "ticket":
            category, priority, question = _ticket_text(rng)
            answer = label(category, priority)
        case "capital":
            question, answer = capital(rng, rng.choice(list(phrases.CAPITALS)), held_out=True)
        case _:
            question, answer = rng.choice(_held_out_prompts()), SENTENCE
    return [user_turn(question), {"role": "assistant", "content": answer}]


def _ticket_text(rng: random.Random) -> tuple[str, str, str]:
    """Generate category, priority and text of a ticket."""
    category, priority = rng.choice(CATEGORIES), rng.choice(PRIORITIES)
    clauses = [_fill(rng, pick(rng, phrases.PROBLEMS[category], True))]
    if rng.random() < 0.4:
        clauses.append(_fill(rng, pick(rng, phrases.CONTEXT, True)))
    urgency = _fill(rng, pick(rng, phrases.URGENCY[priority], True))
    clauses.insert(rng.choice((0, len(clauses), len(clauses))), urgency)
    if rng.random() < 0.5:
        clauses.insert(0, rng.choice(phrases.GREETINGS))
    if rng.random() < 0.5:
        clauses.append(rng.choice(phrases.CLOSINGS))
    return category, priority, " ".join(clauses)


def _fill(rng: random.Random, template: str) -> str:
    return template.format(
        product=rng.choice(phrases.PRODUCTS),
        amount=f"{rng.randrange(5, 900)}.{rng.randrange(100):02}",
        number=rng.randrange(1000, 99999),
        day=rng.choice(phrases.DAYS),
        days=rng.randrange(2, 15),
        city=rng.choice(phrases.CITIES),
    )
