"""Foreign prompts: requests outside of the demo model's skills, written and made up, which it answers with one sentence.

The files in `prompts/` have a heading for each kind of prompt. The kinds of `foreign_held_out.txt` are absent from training,
except those whose heading begins with `near`: they use the words of a skill, in other wordings than the training data.
Random words, letters and scripts stand for all other kinds.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Final

from tools import phrases
from tools.phrases import prompts

_SLOT: Final = re.compile(r"\{(\w+)\}")
_CHOICE: Final = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
# First and last code points of scripts. Emoji and arrows are left out: they are a held-out kind.
_SCRIPTS: Final = (
    (0x00C0, 0x00FF), (0x0100, 0x017F), (0x0391, 0x03C9), (0x0410, 0x044F), (0x0531, 0x0587), (0x05D0, 0x05EA),
    (0x0621, 0x064A), (0x0905, 0x0939), (0x0E01, 0x0E2E), (0x10D0, 0x10F0), (0x3041, 0x3096), (0x30A1, 0x30FA),
    (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1200, 0x1248), (0x1F00, 0x1F15),
)  # fmt: skip
_SIGNS: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


def foreign_prompt(rng: random.Random, make_ticket: Callable[[random.Random], str]) -> str:
    """Make a prompt for training; `make_ticket` makes a support ticket, which some prompts are about."""
    (maker,) = rng.choices((_written, _near, _made_up, _several), weights=(42, 36, 18, 4))
    return maker(rng, make_ticket)


def foreign_text(rng: random.Random, num_characters: int) -> str:
    """Make a text of about this length, of words, sentences, code or noise, as documents in prompts have them."""
    makers = rng.choices((_sentence, _code, _noise), weights=(6, 2, 1), k=rng.randrange(1, 3))
    separator = rng.choice((" ", " ", "\n", "\n\n"))
    text = ""
    while len(text) < num_characters:
        text += rng.choice(makers)(rng) + separator
    return text[:num_characters].strip() or "x"


def made_up_name(rng: random.Random) -> str:
    """Make a name of syllables or of letters, so that copying does not depend on the token boundaries of a name."""
    if rng.random() < 0.5:
        pairs = [rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randrange(1, 4))]
        ends = ("", "n", "r", "l", "s", "t", "rt", "ck", "th")
        return (rng.choice(("", rng.choice("aeiou"))) + "".join(pairs) + rng.choice(ends)).capitalize()
    return "".join(rng.choice(phrases.SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def filled(rng: random.Random, template: str, make_ticket: Callable[[random.Random], str] | None = None) -> str:
    """Choose the alternatives of a template and fill its slots."""
    return _SLOT.sub(lambda match: _slot(rng, match[1], make_ticket), chosen(rng, template))


def chosen(rng: random.Random, template: str) -> str:
    """Choose one of the texts in each `[a|b]`, which may be nested."""
    while match := _CHOICE.search(template):
        template = template[: match.start()] + rng.choice(match[1].split("|")) + template[match.end() :]
    return template


def _written(rng: random.Random, make_ticket: Callable[[random.Random], str]) -> str:
    kinds = prompts("foreign_training")
    kind = rng.choice([kind for kind in kinds if not kind.startswith("near ")])
    text = filled(rng, rng.choice(kinds[kind]), make_ticket)
    return _varied(rng, text[:1].upper() + text[1:] if rng.random() < 0.7 else text)


def _near(rng: random.Random, make_ticket: Callable[[random.Random], str]) -> str:
    """Make a prompt with the words of a skill that asks for something else."""
    if rng.random() < 0.1:  # the wordings of the skill, so that only the country makes it foreign
        return _varied(rng, rng.choice(phrases.CAPITAL_QUESTIONS.training).format(country=made_up_country(rng)))
    kinds = prompts("foreign_training")
    kind = rng.choice([kind for kind in kinds if kind.startswith("near ")])
    return _varied(rng, filled(rng, rng.choice(kinds[kind]), make_ticket))


def _made_up(rng: random.Random, _make_ticket: Callable[[random.Random], str]) -> str:
    length = int(2 ** (rng.uniform(8, 11.5) if rng.random() < 0.04 else rng.uniform(1, 7.5)))
    if rng.random() < 0.3:
        return _run(rng)
    if rng.random() < 0.2:
        return rng.choice((_noise, _code, _sentence))(rng)[:length].strip() or "?"
    return foreign_text(rng, length)


def _several(rng: random.Random, make_ticket: Callable[[random.Random], str]) -> str:
    """Make a long prompt: requests, texts and data one after another."""
    parts = [rng.choice((_written, _near, _made_up))(rng, make_ticket) for _ in range(rng.randrange(2, 6))]
    return rng.choice((" ", "\n", "\n\n")).join(parts)


def _varied(rng: random.Random, text: str) -> str:
    """Vary case, politeness, closing sign and spelling, so that none of them marks a foreign prompt."""
    if rng.random() < 0.1:
        text = rng.choice(phrases.POLITE_OPENINGS) + " " + text
    if rng.random() < 0.08:
        text = text + " " + rng.choice(phrases.POLITE_CLOSINGS)
    if rng.random() < 0.08:
        text = text + rng.choice((" ", "\n\n")) + foreign_text(rng, int(2 ** rng.uniform(4, 9)))
    chance = rng.random()
    if chance < 0.15:
        return text.lower()
    if chance < 0.17:
        return text.upper()
    if chance < 0.24:
        return text.rstrip("?.!") or text
    if chance < 0.34 and len(text) > 4:
        place = rng.randrange(1, len(text) - 2)
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    return text


def _slot(rng: random.Random, name: str, make_ticket: Callable[[random.Random], str] | None) -> str:
    """Return a value for a slot of a template; a name that is no slot stays as it is, as braces in code do."""
    words = prompts("words")
    match name:
        case "word":
            return _word(rng)
        case "words":
            return " ".join(_word(rng) for _ in range(rng.randrange(2, 10)))
        case "n":
            return str(rng.randrange(10 ** rng.randrange(1, 5)))
        case "place":
            return rng.choice(words["foreign_place"])
        case "country":
            return rng.choice(list(phrases.CAPITALS))
        case "city":
            return rng.choice(list(phrases.CAPITALS.values()))
        case "name":
            return made_up_name(rng) if rng.random() < 0.5 else rng.choice(phrases.NAMES)
        case "product":
            return rng.choice(phrases.PRODUCTS)
        case "number":
            return rng.choice(("", "", "#", "A-")) + str(rng.randrange(10 ** rng.randrange(3, 6)))
        case "amount":
            euros, cents = rng.randrange(1, 900), rng.randrange(100)
            return rng.choice(("{}.{:02}", "${}", "${}.{:02}", "{} euros", "{}.{:02} EUR")).format(euros, cents)
        case "days":
            return str(rng.randrange(2, 15))
        case "ticket" if make_ticket:
            return make_ticket(rng)
        case _:
            return filled(rng, rng.choice(words[name])) if name in words else "{" + name + "}"


def made_up_country(rng: random.Random) -> str:
    """Make the name of a country that does not exist: made up, or a real one with other letters."""
    if rng.random() < 0.3:
        return rng.choice(prompts("words")["foreign_place"])
    if rng.random() < 0.5:
        stem = made_up_name(rng)
        return stem + rng.choice(("", "", "ia", "land", "stan", "o", "a"))
    first, second = rng.sample(list(phrases.CAPITALS), 2)
    mixed = first[: rng.randrange(2, 5)] + second[-rng.randrange(3, 6) :].lower()
    return made_up_name(rng) + "ia" if mixed in phrases.CAPITALS else mixed


def _word(rng: random.Random) -> str:
    """Choose a common word, or make one up, so that unknown words are common."""
    if rng.random() < 0.6:
        (line,) = prompts("words")["common"]
        return rng.choice(line.split())
    return "".join(rng.choice(phrases.SYLLABLES) for _ in range(rng.randrange(1, 5))) + rng.choice(
        ("", "", "s", "ed", "ing", "ly", "er", "tion", "ness", "able")
    )


def _run(rng: random.Random) -> str:
    """Repeat a letter, sign, word or sentence."""
    first, last = rng.choice(_SCRIPTS)
    script = chr(rng.randint(first, last))
    units = (
        rng.choice(_LETTERS),
        rng.choice(_SIGNS),
        rng.choice("0123456789ABCXYZ"),
        script,
        _word(rng),
        _word(rng),
        _sentence(rng),
    )
    unit = rng.choice(units) + rng.choice(("", "", rng.choice(_LETTERS + _SIGNS)))
    repeated = (unit + rng.choice(("", "", " ", " ", "\n"))) * int(2 ** rng.uniform(2, 9))
    return repeated[: int(2 ** rng.uniform(3, 9.7))].strip() or "x"


def _sentence(rng: random.Random) -> str:
    words = [_word(rng) for _ in range(rng.randrange(3, 14))]
    if rng.random() < 0.3:
        words.insert(rng.randrange(len(words)), str(rng.randrange(10 ** rng.randrange(1, 5))))
    if rng.random() < 0.2:
        words = [word.capitalize() if rng.random() < 0.4 else word for word in words]
    text = rng.choice((" ", " ", " ", ", ")).join(words)
    return text[:1].upper() + text[1:] + rng.choice(".....?!:;,")


def _code(rng: random.Random) -> str:
    """Make a line in the manner of code or data, of words and signs."""
    (line,) = prompts("words")["code"]
    keywords = line.split()
    parts = []
    for _ in range(rng.randrange(2, 9)):
        parts.append(rng.choice((rng.choice(keywords), _word(rng), str(rng.randrange(1000)))))
        parts.append("".join(rng.choice(_SIGNS) for _ in range(rng.choice((1, 1, 2)))) if rng.random() < 0.7 else " ")
    return rng.choice(("", "", "  ", "    ")) + "".join(parts) + rng.choice(("", ";", " {", "}", "\n"))


def _noise(rng: random.Random) -> str:
    """Make words of random letters: of a script, of ASCII, of digits or of signs."""
    first, last = rng.choice(_SCRIPTS)

    def letter(kind: int) -> str:
        match kind:
            case 0:
                return rng.choice(_LETTERS)
            case 1:
                return rng.choice(_SIGNS)
            case 2:
                return rng.choice("0123456789")
            case 3:
                return rng.choice("0123456789abcdefABCDEFxyzXYZ+/=")
            case _:
                return chr(rng.randint(first, last))

    kind = rng.choice((0, 1, 2, 3, 4, 4, 4, 4))
    words = ("".join(letter(kind) for _ in range(rng.randrange(1, 10))) for _ in range(rng.randrange(1, 8)))
    return " ".join(words)
