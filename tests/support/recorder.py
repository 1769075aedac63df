"""A sink of an engine's outputs for tests."""

from __future__ import annotations

import threading
from typing import Final

from engine.process.client import EngineLost
from engine.types import Delta, Embedded, Failed, Finished

SECONDS: Final = 60.0  # for a wait that only a broken engine needs


class Recorder:
    """A sink that records all calls; `began` and `ended` are set at the first text and at the end."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.outcomes: list[Finished | Embedded | Failed | EngineLost] = []
        self.began = threading.Event()
        self.ended = threading.Event()

    def on_delta(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self.began.set()

    def on_end(self, outcome: Finished | Embedded | Failed | EngineLost) -> None:
        self.outcomes.append(outcome)
        self.ended.set()

    @property
    def text(self) -> str:
        """The text of all deltas of the first answer."""
        return "".join(delta.text for delta in self.deltas if not delta.index)

    @property
    def outcome(self) -> Finished | Embedded | Failed | EngineLost:
        assert self.ended.wait(SECONDS), "the request did not end"
        assert len(self.outcomes) == 1, "a request ends once"
        return self.outcomes[0]

    @property
    def finished(self) -> Finished:
        outcome = self.outcome
        assert isinstance(outcome, Finished), outcome
        return outcome
