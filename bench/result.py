"""A measured value beside its target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured value and its target, which is a minimum unless `is_limit`."""

    name: str
    value: float
    unit: str
    target: float
    is_limit: bool = False

    @property
    def is_met(self) -> bool:
        """True when the value reaches its target."""
        return self.value <= self.target if self.is_limit else self.value >= self.target
