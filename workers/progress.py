"""Where the lines of one shard are: pure bookkeeping of what waits, runs, is under suspicion, follows another, or has ended.

Knows line ids, bodies and outcomes; nothing of engines, leases or databases. *Twins* are lines whose body gets the same answer
as another line's in the shard: they are never run, and share the fate of the line they follow, crashes included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from workers.exchanges.base import Outcome


@dataclass(frozen=True, slots=True)
class Ended:
    """A line that has ended and is not written yet; a twin was not run."""

    line: str
    outcome: Outcome
    is_twin: bool


@dataclass(slots=True)
class Progress:
    """Each line is in exactly one place: it waits, is a suspect, runs, follows one of those, or has ended."""

    waiting: deque[str] = field(default_factory=deque)
    bodies: dict[str, str] = field(default_factory=dict)
    twins: dict[str, list[str]] = field(default_factory=dict)
    suspects: deque[str] = field(default_factory=deque)
    running: set[str] = field(default_factory=set)
    crashes: dict[str, int] = field(default_factory=dict)
    ended: deque[Ended] = field(default_factory=deque)
    num_written: int = 0
    is_stopping: bool = False

    def add(self, rows: Iterable[tuple[str, str | None]], is_shared: Callable[[str], bool]) -> None:
        """Lines as the database gives them: ids with bodies, or with None for the body of the line before.

        `is_shared` tells whether one answer serves all lines of a body; it is asked only where there are several.
        """
        leader, body, shares = "", "", None
        for line, own_body in rows:
            if own_body is not None:
                leader, body, shares = line, own_body, None
            elif shares is None:
                shares = is_shared(body)
            self.bodies[line] = body
            if shares and line != leader:
                self.twins.setdefault(leader, []).append(line)
            else:
                self.waiting.append(line)

    def begin(self, window: int) -> str | None:
        """The line to submit now, which runs from here on: suspects first and alone, then as many others as the window holds."""
        if self.is_stopping:
            return None
        line = None
        if self.suspects:
            line = self.suspects.popleft() if not self.running else None
        elif self.waiting and len(self.running) < window and not self._runs_a_suspect():
            line = self.waiting.popleft()
        if line is not None:
            self.running.add(line)
        return line

    def end(self, line: str, outcome: Outcome) -> None:
        """A running line has ended, and its twins with it."""
        self.running.remove(line)
        self.ended.append(Ended(line, outcome, is_twin=False))
        self.ended.extend(Ended(twin, outcome, is_twin=True) for twin in self.twins.pop(line, ()))

    def give_back(self, line: str) -> None:
        """A running line was stopped and waits again; a suspect stays one."""
        self.running.remove(line)
        (self.suspects if line in self.crashes else self.waiting).append(line)

    def crashed(self, line: str, most: int) -> bool:
        """A running line's engine died. True: it has now seen `most` crashes and must end; else it will run again, alone."""
        self.crashes[line] = self.crashes.get(line, 0) + 1
        if self.crashes[line] >= most:
            return True
        self.running.remove(line)
        self.suspects.append(line)
        return False

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
        assert set(self.twins) <= set(open_lines), "twins follow a line that is open"
        places = [*open_lines, *(twin for many in self.twins.values() for twin in many)]
        places += [ended.line for ended in self.ended]
        assert len(places) == len(set(places)), "a line is in two places"
        assert set(places) <= set(self.bodies), "a line of another shard"
        assert len(places) + self.num_written == len(self.bodies), "a line is lost"
        assert all(self.bodies[leader] == self.bodies[twin] for leader in self.twins for twin in self.twins[leader])

    def _runs_a_suspect(self) -> bool:
        return any(line in self.crashes for line in self.running)
