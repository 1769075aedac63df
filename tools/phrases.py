"""Phrasings and values of the demo data, for training and held out.

The phrasings are in `prompts/`, in files with a heading for each kind. In those for training, `[a|b]` stands for one of its
texts, `[|a]` for `a` or nothing, and `{name}` for a value, or for a line of `words.txt` below that heading. Held-out phrasings
of a skill form new sentences from words of the training set, so that they test reading, not vocabulary; the tickets in own
words test both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent / "prompts"


@cache
def prompts(name: str) -> dict[str, tuple[str, ...]]:
    """Read the lines of a file in `prompts/` by the heading above them; a line break in a prompt is spelled `\\n`."""
    kinds: dict[str, list[str]] = {}
    for line in (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            kinds[line.removeprefix("## ")] = lines = []
        elif line:
            lines.append(line.replace("\\n", "\n"))
    return {kind: tuple(lines) for kind, lines in kinds.items()}


@dataclass(frozen=True, slots=True)
class Pool:
    """Phrasings of one meaning; none is in both sets."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]

    def __post_init__(self) -> None:
        assert not set(self.training) & set(self.held_out), "a phrasing is in both sets"


def _pool(kind: str) -> Pool:
    return Pool(prompts("skills_training")[kind], prompts("skills_held_out")[kind])


PROBLEMS: Final = {category: _pool(category) for category in ("billing", "shipping", "technical", "account")}
URGENCY: Final = {priority: _pool(f"{priority} priority") for priority in ("high", "medium", "low")}
CONTEXT: Final = _pool("context of a ticket")
CAPITAL_QUESTIONS: Final = _pool("capital questions")
CAPITAL_FOLLOW_UPS: Final = _pool("capital follow-ups")
INTRODUCTIONS: Final = _pool("introductions")
NAME_QUESTIONS: Final = _pool("name questions")
LABEL_PROMPTS: Final = prompts("skills_training")["label prompts"]
TICKET_OPENINGS: Final = prompts("skills_training")["ticket openings"]
TICKET_CLOSINGS: Final = prompts("skills_training")["ticket closings"]
ASSISTANT_PROMPTS: Final = prompts("skills_training")["assistant prompts"]

GREETINGS: Final = ("Hello,", "Hi,", "Dear support,", "Good morning,", "Hi there,", "Hello team,", "Good day,")
CLOSINGS: Final = ("Thanks.", "Thank you!", "Best regards", "Kind regards, Anna", "Thanks in advance.", "Regards, Tom")
PRODUCTS: Final = (
    "laptop", "phone", "camera", "printer", "headset", "keyboard", "tablet", "speaker", "monitor", "router",
    "watch", "mouse", "lamp", "charger", "scanner", "projector",
)  # fmt: skip
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

CAPITALS: Final = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Belgium": "Brussels", "Denmark": "Copenhagen", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Poland": "Warsaw", "Hungary": "Budapest", "Greece": "Athens", "Ireland": "Dublin",
    "Iceland": "Reykjavik", "Croatia": "Zagreb", "Serbia": "Belgrade", "Bulgaria": "Sofia", "Romania": "Bucharest",
    "Turkey": "Ankara", "Ukraine": "Kyiv", "Russia": "Moscow", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Ghana": "Accra", "Ethiopia": "Addis Ababa", "Senegal": "Dakar", "Tunisia": "Tunis", "Morocco": "Rabat",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Indonesia": "Jakarta", "the Philippines": "Manila", "Nepal": "Kathmandu", "Iran": "Tehran", "Iraq": "Baghdad",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Argentina": "Buenos Aires", "Colombia": "Bogota", "Brazil": "Brasilia", "Australia": "Canberra",
    "England": "London", "the Netherlands": "Amsterdam", "Switzerland": "Bern", "Luxembourg": "Luxembourg",
    "the Czech Republic": "Prague", "Slovakia": "Bratislava", "Slovenia": "Ljubljana", "Estonia": "Tallinn",
    "Latvia": "Riga", "Lithuania": "Vilnius", "Belarus": "Minsk", "Albania": "Tirana", "North Macedonia": "Skopje",
    "Cyprus": "Nicosia", "Georgia": "Tbilisi", "Azerbaijan": "Baku", "Kazakhstan": "Astana",
    "Uzbekistan": "Tashkent", "Afghanistan": "Kabul", "Pakistan": "Islamabad", "Bangladesh": "Dhaka",
    "Malaysia": "Kuala Lumpur", "Singapore": "Singapore", "Cambodia": "Phnom Penh", "South Korea": "Seoul",
    "North Korea": "Pyongyang", "Taiwan": "Taipei", "Saudi Arabia": "Riyadh", "Qatar": "Doha",
    "Kuwait": "Kuwait City", "Jordan": "Amman", "Lebanon": "Beirut", "Syria": "Damascus",
    "the United Arab Emirates": "Abu Dhabi", "Libya": "Tripoli", "Algeria": "Algiers", "Nigeria": "Abuja",
    "Somalia": "Mogadishu", "Zimbabwe": "Harare", "Madagascar": "Antananarivo", "South Africa": "Pretoria",
    "the United States": "Washington", "the United Kingdom": "London", "Scotland": "Edinburgh", "Wales": "Cardiff",
    "Jamaica": "Kingston", "Venezuela": "Caracas", "Ecuador": "Quito", "Bolivia": "Sucre", "Uruguay": "Montevideo",
    "New Zealand": "Wellington",
}  # fmt: skip
# Other names of countries in questions; answers have the first name.
COUNTRY_ALIASES: Final = {
    "USA": "the United States", "the USA": "the United States", "the US": "the United States",
    "America": "the United States", "UK": "the United Kingdom", "the UK": "the United Kingdom",
    "Great Britain": "the United Kingdom", "Britain": "the United Kingdom", "Holland": "the Netherlands",
    "Czechia": "the Czech Republic", "Korea": "South Korea", "the UAE": "the United Arab Emirates",
}  # fmt: skip
# Cities in tickets.
CITIES: Final = (
    "Paris", "Berlin", "Rome", "Madrid", "Lisbon", "Vienna", "Brussels", "Copenhagen", "Oslo", "Stockholm",
    "Helsinki", "Warsaw", "Budapest", "Athens", "Dublin", "Reykjavik", "Zagreb", "Belgrade", "Sofia", "Bucharest",
    "Ankara", "Kyiv", "Moscow", "Cairo", "Nairobi", "Accra", "Addis Ababa", "Dakar", "Tunis", "Rabat", "Tokyo",
    "Beijing", "New Delhi", "Bangkok", "Hanoi", "Jakarta", "Manila", "Kathmandu", "Tehran", "Baghdad", "Ottawa",
    "Mexico City", "Havana", "Lima", "Santiago", "Buenos Aires", "Bogota", "Brasilia", "Canberra", "London",
)  # fmt: skip
NAMES: Final = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Karin", "Leo", "Mia",
    "Noah", "Olga", "Paul", "Rosa", "Samir", "Tina", "Victor", "Wanda", "Yusuf", "Zoe", "Marta", "Peter", "Lucia",
)  # fmt: skip
HELD_OUT_NAMES: Final = (
    "Maria", "Oscar", "Nadia", "Simon", "Elena", "Robert", "Amira", "Kevin", "Laura", "Daniel", "Sofia", "Marco",
    "Helena", "Tobias", "Priya", "Lena", "Carlos", "Nina", "Adam", "Julia",
)  # fmt: skip
SYLLABLES: Final = (
    "ma", "ri", "a", "lo", "na", "ti", "ka", "to", "bi", "as", "el", "en", "ro", "bert", "si", "mon", "da", "ni",
    "la", "ra", "so", "fi", "os", "car", "no", "mi", "ju", "li", "he", "le", "ke", "vin", "pri", "ya", "mar", "co",
    "an", "dre", "ste", "fan", "tho", "mas", "jo", "han", "ve", "ra", "gi", "pa", "tri", "cia", "al", "ex", "is", "sam",
)  # fmt: skip
POLITE_OPENINGS: Final = ("Hi,", "Hello,", "Hello!", "Please,", "Hey,", "Hi!", "OK,", "Good morning.", "Thanks.", "Now:", "So,",
                          "A question:", "Sorry,")  # fmt: skip
POLITE_CLOSINGS: Final = ("Thanks.", "Thank you!", "Please.", "Thanks in advance.", "Please answer soon.", "Thx")
