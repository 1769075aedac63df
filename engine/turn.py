"""The turn of an engine: its right to compute a step while other engines use the same cores."""

from __future__ import annotations

from typing import Protocol


class Turn(Protocol):
    """Only the thread of the loop uses it."""

    def take(self, *, is_chat: bool) -> bool:
        """Take or keep the turn for a step; False after a few milliseconds without it: read the inbox, then ask again."""

    def give_back(self) -> None:
        """Let others compute, since there is nothing to do; no effect without a turn."""


class OwnCores:
    """The turn of an engine that shares its device with no other."""

    def take(self, *, is_chat: bool) -> bool:  # noqa: ARG002
        return True

    def give_back(self) -> None: ...
