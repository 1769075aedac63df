"""Shard progress: the state machine of a shard's lines, which decides what runs next and what follows from an outcome.

                    begin                Record, Block               written
      WAITING ───────────────> RUNNING ────────────────────> ENDED ───────────> (removed)
       ^   ^                      │                            ^
       │   └─ Retry, requeue ─────┘                            │ when the line that they follow ends
       │                                                       │
       └─ set_parsed, not shared ── DUPLICATE ─────────────────┘

A *duplicate* has the body of the line that it follows. When that line begins and its answer serves all of them, they never run
and get its outcome, crashes included; else they wait in front of the other lines.

A line that was in a step that failed, or that ended the engine, is a *suspect*: from then on it runs alone. `crashes` counts
that step, and each time the line begins alone. The count is stored before the line begins and is taken back when the line is
stopped, so that the worker that claims the shard after a crash finds it. At `max_crashes` the line ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from engine.process.client import EngineLost
from engine.types import Failed, Finished, FinishReason
from workers.generation.endpoints.base import EndpointAdapter, EngineOutcome
from workers.generation.quarantine import JsonObject


@dataclass(frozen=True, slots=True)
class Retry:
    """The line runs again. `is_crash`: it is a suspect now, and the attempt counts against it."""

    is_crash: bool


@dataclass(frozen=True, slots=True)
class Record:
    """The line and its duplicates have ended; their results wait to be written."""


@dataclass(frozen=True, slots=True)
class Block:
    """As Record; besides, the engine ended too often while it ran this body, which must be quarantined."""


class LineState(StrEnum):
    """The states of the picture above."""

    WAITING = "waiting"
    DUPLICATE = "duplicate"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class ParsedBody:
    """A body as its endpoint reads it, and its JSON fields."""

    adapter: EndpointAdapter
    fields: JsonObject


@dataclass(frozen=True, slots=True)
class Window:
    """How many lines run at a time: up to `lines`, of which two or more have `characters` at most in their bodies."""

    lines: int
    characters: int | None = None

    def has_room(self, running: Collection[Line]) -> bool:
        """May another line begin beside these?"""
        if self.characters is None or len(running) < 2:
            return len(running) < self.lines
        return len(running) < self.lines and sum(len(line.body) for line in running) < self.characters


@dataclass(slots=True, eq=False)
class Line:
    """A line, changed by `ShardProgress` only. `parsed` is None until it begins, or the line that it follows does."""

    id: str
    body: str
    crashes: int = 0
    is_suspect: bool = False
    state: LineState = LineState.WAITING
    parsed: ParsedBody | None = None
    duplicates: list[Line] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EndedLine:
    """A line that has ended, until its result is written; a duplicate has the outcome of the line that it follows."""

    line: Line
    outcome: EngineOutcome
    is_duplicate: bool


class ShardProgress:
    """All lines of a shard that are not written yet. `all_suspects`: workers have vanished while they held this shard."""

    def __init__(self, max_crashes: int, *, all_suspects: bool = False) -> None:
        self.max_crashes = max_crashes
        self.all_suspects = all_suspects
        self.lines: dict[str, Line] = {}
        self.waiting: deque[Line] = deque()
        self.suspects: deque[Line] = deque()
        self.running: set[Line] = set()
        self.ended: deque[EndedLine] = deque()
        self.unsaved: dict[str, int] = {}  # crash counts that the database does not have
        self.is_stopping = False

    def add(self, rows: Iterable[tuple[str, str | None, int]]) -> None:
        """Add lines as the database returns them: ids, bodies (None: that of the line before) and crash counts."""
        leader: Line | None = None
        for line_id, body, crashes in rows:
            if body is not None:
                line = leader = Line(line_id, body, crashes)
            else:
                assert leader is not None, "the first line has a body"
                line = Line(line_id, leader.body, crashes)
            self.lines[line_id] = line
            if line is not leader and not crashes:
                line.state = LineState.DUPLICATE
                leader.duplicates.append(line)
            else:
                line.is_suspect = bool(crashes) or self.all_suspects
                self._queue_of(line).append(line)

    def take_exhausted(self) -> list[Line]:
        """Begin the suspects with stored crash counts at the limit, only to be ended by the caller."""
        exhausted = [line for line in self.suspects if line.crashes >= self.max_crashes]
        for line in exhausted:
            self.suspects.remove(line)
            self._run(line)
        return exhausted

    @property
    def must_write_first(self) -> bool:
        """Results are written before the next suspect begins: if it ends the worker, no crash is counted for them."""
        return bool(self.suspects and self.ended)

    def may_begin(self, window: Window) -> bool:
        """Is there a line to begin: a suspect when nothing else runs, else any while the window has room?"""
        if self.is_stopping or self.must_write_first:
            return False
        if self.suspects:
            return not self.running
        runs_suspect = len(self.running) == 1 and next(iter(self.running)).is_suspect  # which runs alone
        return bool(self.waiting) and not runs_suspect and window.has_room(self.running)

    def begin(self) -> Line:
        """Begin the next line, after `may_begin`. The count of a suspect must be stored before its engine gets it."""
        line = (self.suspects or self.waiting).popleft()
        if line.is_suspect:
            self._count(line, 1)
        self._run(line)
        return line

    def set_parsed(self, line: Line, parsed: ParsedBody, *, is_shared: bool) -> None:
        """Keep the parsed body of a running line. `is_shared`: its answer serves its duplicates as well."""
        line.parsed = parsed
        for duplicate in line.duplicates:
            duplicate.parsed = parsed
        if not is_shared:
            separate, line.duplicates = line.duplicates, []
            for duplicate in reversed(separate):
                duplicate.state, duplicate.is_suspect = LineState.WAITING, self.all_suspects
                self._queue_of(duplicate).appendleft(duplicate)

    def on_outcome(self, line: Line, outcome: EngineOutcome) -> Retry | Record | Block:
        """Move a running line on."""
        match outcome:
            case Finished(reason=FinishReason.CANCELLED) | EngineLost(was_running=False):
                self.requeue(line)
                return Retry(is_crash=False)
            case EngineLost() | Failed(code="engine_error"):  # the outcome of each request in a step that failed
                if self._is_retried_after_crash(line):
                    return Retry(is_crash=True)
        self._end(line, outcome)
        return Block() if isinstance(outcome, EngineLost) else Record()

    def requeue(self, line: Line) -> None:
        """Let a running line that was stopped wait again, with the crash count that it had before it began."""
        self._stop(line)
        if line.is_suspect:
            self._count(line, -1)
            self.suspects.appendleft(line)
        else:
            self.waiting.append(line)

    def saved(self, crashes: dict[str, int]) -> None:
        """Record that these crash counts are in the database."""
        for line_id, number in crashes.items():
            if self.unsaved.get(line_id) == number:
                del self.unsaved[line_id]

    def written(self, count: int) -> None:
        """Remove the first `count` ended lines, whose results are in the database."""
        for _ in range(count):
            del self.lines[self.ended.popleft().line.id]

    def is_over(self) -> bool:
        """Does nothing run, and will nothing begin?"""
        return not self.running and (self.is_stopping or not (self.waiting or self.suspects))

    def check_integrity(self) -> None:
        """Assert that each line is in the one place that its state names, and that none is missing."""
        queued = [*self.waiting, *self.suspects]
        followers = [duplicate for line in (*queued, *self.running) for duplicate in line.duplicates]
        places = {
            LineState.WAITING: queued,
            LineState.RUNNING: list(self.running),
            LineState.DUPLICATE: followers,
            LineState.ENDED: [ended.line for ended in self.ended],
        }
        placed = [line for lines in places.values() for line in lines]
        assert len(placed) == len(set(placed)), "a line is in two places"
        assert {line.id for line in placed} == set(self.lines), "a line is lost, or of another shard"
        assert all(line.state is state for state, lines in places.items() for line in lines)
        assert all(line.is_suspect == (line in self.suspects) for line in queued)
        assert not any(line.is_suspect or line.duplicates for line in followers)
        assert all(line.is_suspect for line in placed if line.crashes), "a crash count makes a suspect"
        assert all(line.body == duplicate.body for line in placed for duplicate in line.duplicates)
        assert set(self.unsaved) <= {line.id for line in (*queued, *self.running)}, "an ended line needs no count"

    def _queue_of(self, line: Line) -> deque[Line]:
        return self.suspects if line.is_suspect else self.waiting

    def _run(self, line: Line) -> None:
        line.state = LineState.RUNNING
        self.running.add(line)

    def _stop(self, line: Line) -> None:
        self.running.remove(line)
        line.state = LineState.WAITING

    def _is_retried_after_crash(self, line: Line) -> bool:
        """A line that was alone goes first, so that its crashes are soon proved to be its own."""
        was_alone = line.is_suspect
        if not was_alone:
            line.is_suspect = True
            self._count(line, 1)
        if line.crashes >= self.max_crashes:
            return False
        self._stop(line)
        (self.suspects.appendleft if was_alone else self.suspects.append)(line)
        return True

    def _end(self, line: Line, outcome: EngineOutcome) -> None:
        self.running.remove(line)
        self.unsaved.pop(line.id, None)
        self.ended.append(EndedLine(line, outcome, is_duplicate=False))
        self.ended.extend(EndedLine(duplicate, outcome, is_duplicate=True) for duplicate in line.duplicates)
        for one in (line, *line.duplicates):
            one.state = LineState.ENDED
        line.duplicates = []

    def _count(self, line: Line, more: int) -> None:
        line.crashes += more
        self.unsaved[line.id] = line.crashes
