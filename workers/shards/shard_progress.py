"""Where the lines of one shard are: pure bookkeeping of what waits, runs, is under suspicion, follows another, or has ended.

Knows line ids, bodies and outcomes; nothing of engines, leases or databases. *Twins* are lines whose body gets the same answer
as another line's in the shard: they are never run, and share the fate of the line they follow, crashes included.

A line that was in a step when its engine died is a *suspect*: from then on it runs alone. What it is suspected for is a number,
`crashes`: that first one, and one more for each time it begins alone, which is counted before it begins and taken back when it
was stopped. So whoever finds the number in the row of a line whose worker has vanished knows how often that may have been its
doing. A number that is high enough convicts it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from workers.generation.endpoints.base import EngineOutcome


@dataclass(frozen=True, slots=True)
class Ended:
    """A line that has ended and is not written yet; a twin was not run."""

    line: str
    outcome: EngineOutcome
    is_twin: bool


@dataclass(slots=True)
class ShardProgress:
    """Each line is in exactly one place: it waits, is a suspect, runs, follows one of those, or has ended."""

    waiting: deque[str] = field(default_factory=deque)
    bodies: dict[str, str] = field(default_factory=dict)
    duplicates: dict[str, list[str]] = field(default_factory=dict)
    suspects: deque[str] = field(default_factory=deque)
    running: set[str] = field(default_factory=set)
    crashes: dict[str, int] = field(default_factory=dict)
    unsaved: dict[str, int] = field(default_factory=dict)
    ended: deque[Ended] = field(default_factory=deque)
    num_written: int = 0
    is_stopping: bool = False

    def add(
        self,
        rows: Iterable[tuple[str, str | None, int]],
        is_shared: Callable[[str], bool],
        *,
        all_are_suspects: bool = False,
    ) -> None:
        """Lines as the database gives them: ids, bodies or None for the body of the line before, and crashes.

        `is_shared` tells whether one answer serves all lines of a body; it is asked only where there are several.
        """
        leader, body, shares = "", "", None
        for line, own_body, crashes in rows:
            if own_body is not None:
                leader, body, shares = line, own_body, None
            elif shares is None:
                shares = is_shared(body)
            self.bodies[line] = body
            if shares and line != leader:
                self.duplicates.setdefault(leader, []).append(line)
            elif crashes or all_are_suspects:
                self.crashes[line] = crashes
                self.suspects.append(line)
            else:
                self.waiting.append(line)

    def convicted(self, most: int) -> list[str]:
        """Suspects with so many crashes; they run from here on, only to be ended."""
        guilty = [line for line in self.suspects if self.crashes[line] >= most]
        for line in guilty:
            self.suspects.remove(line)
            self.running.add(line)
        return guilty

    def begin(self, window: int) -> str | None:
        """The line to submit now, which runs from here on: suspects first and alone, then as many others as the window holds.

        A suspect's number is in `unsaved`: it must be in the database before the line is submitted.
        """
        if self.is_stopping:
            return None
        line = None
        if self.suspects:
            line = self.suspects.popleft() if not self.running else None
            if line is not None:
                self._count(line, 1)
        elif self.waiting and len(self.running) < window and not self._runs_a_suspect():
            line = self.waiting.popleft()
        if line is not None:
            self.running.add(line)
        return line

    def end(self, line: str, outcome: EngineOutcome) -> None:
        """A running line has ended, and its twins with it."""
        self.running.remove(line)
        self.unsaved.pop(line, None)
        self.ended.append(Ended(line, outcome, is_twin=False))
        self.ended.extend(Ended(twin, outcome, is_twin=True) for twin in self.duplicates.pop(line, ()))

    def give_back(self, line: str) -> None:
        """A running line was stopped and waits again; a suspect stays one, for what it was before it began."""
        self.running.remove(line)
        if line in self.crashes:
            self._count(line, -1)
            self.suspects.appendleft(line)
        else:
            self.waiting.append(line)

    def crashed(self, line: str, most: int) -> bool:
        """A running line was in the step of which its engine died. True: that is proof, and it must end.

        Else it will run again, alone; one that was alone already is next, so that it is soon known what it is.
        """
        was_alone = line in self.crashes
        if not was_alone:
            self._count(line, 1)
        if self.crashes[line] >= most:
            return True
        self.running.remove(line)
        (self.suspects.appendleft if was_alone else self.suspects.append)(line)
        return False

    def saved(self, crashes: dict[str, int]) -> None:
        """These numbers are in the database."""
        for line, number in crashes.items():
            if self.unsaved.get(line) == number:
                del self.unsaved[line]

    def written(self, count: int) -> None:
        """The first `count` ended lines are in the database."""
        for _ in range(count):
            self.ended.popleft()
        self.num_written += count

    def is_over(self) -> bool:
        """Nothing runs and nothing will be begun."""
        return not self.running and (self.is_stopping or not (self.waiting or self.suspects))

    def check_integrity(self) -> None:
        """Each line is in one place, and none is missing."""
        open_lines = [*self.waiting, *self.suspects, *self.running]
        assert set(self.duplicates) <= set(open_lines), "twins follow a line that is open"
        places = [*open_lines, *(twin for many in self.duplicates.values() for twin in many)]
        places += [ended.line for ended in self.ended]
        assert len(places) == len(set(places)), "a line is in two places"
        assert set(places) <= set(self.bodies), "a line of another shard"
        assert len(places) + self.num_written == len(self.bodies), "a line is lost"
        assert set(self.suspects) <= set(self.crashes), "a suspect for nothing"
        assert set(self.unsaved) <= set(open_lines), "what has ended needs no number"
        assert all(
            self.bodies[leader] == self.bodies[twin] for leader in self.duplicates for twin in self.duplicates[leader]
        )

    def _count(self, line: str, more: int) -> None:
        self.crashes[line] = self.unsaved[line] = self.crashes.get(line, 0) + more

    def _runs_a_suspect(self) -> bool:
        return any(line in self.crashes for line in self.running)
