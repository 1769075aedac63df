"""What a look at this machine found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """BAD keeps Millrace from running; a WARNING does not."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `advice` is empty where there is nothing to do."""

    level: Level
    name: str
    message: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """As `millrace doctor --json` prints it."""
        return {"level": self.level, "name": self.name, "message": self.message, "advice": self.advice}
