"""The result of one check, and its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """BAD keeps Millrace from running; WARNING does not."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check; `advice` is empty where nothing needs to be done."""

    level: Level
    name: str
    message: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """The form that `millrace doctor --json` prints."""
        return {"level": self.level, "name": self.name, "message": self.message, "advice": self.advice}
