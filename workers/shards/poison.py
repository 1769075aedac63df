"""Suspicion: what one run of a shard does about lines that may end their engine, or their worker.

Numbers of suspects are in the database before they run, so that whoever comes after a crash goes on from there: a suspect of
the engine has steps of its own there; where workers were lost, each line runs with nothing beside it in the process.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Connection, Row
from sqlalchemy.exc import SQLAlchemyError

from core.counters import CounterName
from core.lease_policy import is_suspicious
from core.strict_json import parse_json
from db import quarantine, shards
from engine.process.client import EngineLost
from engine.types import Failed
from workers.context import WorkerContext
from workers.generation.endpoints.base import EngineOutcome
from workers.generation.quarantine import blocked_failure, read_quarantine
from workers.shards.isolation import Isolation
from workers.shards.shard_progress import ShardProgress

log = structlog.get_logger()


class LeaseLost(Exception):
    """Another worker has the shard; what is not written is not ours to write."""


class PoisonTracker:
    """Of one claimed shard."""

    def __init__(
        self, context: WorkerContext, claim: Row[*tuple[Any, ...]], progress: ShardProgress, isolation: Isolation
    ) -> None:
        settings = context.settings
        self._database = context.database
        self._tally = context.tally
        self._progress = progress
        self._isolation = isolation
        self._id: str = claim.id
        self._fence: int = claim.fence
        self._most = settings.line_attempts
        self._hours = settings.quarantine_hours
        self._is_about_workers = is_suspicious(claim.attempt)
        self._asked = {"tenant_id": claim.tenant_id, "model": claim.model, "endpoint": claim.endpoint}
        self._convicted: set[str] = set()

    def load(self, is_shared: Callable[[str], bool]) -> None:
        """Read the shard's lines; those that are convicted by now end."""
        with self._database.begin() as connection:
            rows = [(line, body, crashes) for line, body, crashes in connection.execute(shards.queued_lines(self._id))]
            self._accusation = read_quarantine(connection, **self._asked, kept=timedelta(hours=self._hours))
        if self._is_about_workers:
            log.warning("shard_suspected", shard=self._id, lines=len(rows))
        self._progress.add(rows, is_shared, all_are_suspects=self._is_about_workers)
        for line in self._progress.convicted(self._most):
            self._convict(line)
            self._progress.end(line, EngineLost(request_id=line))

    @property
    def wants_all_written(self) -> bool:
        """Results come before the next suspect: if that takes the worker down, they are not blamed for it along with it."""
        return bool(self._progress.suspects and self._progress.ended)

    def begin(self, window: int) -> str | None:
        """The line that runs from here on, if one may."""
        if self.wants_all_written or (self._is_about_workers and self._progress.running):
            return None
        if not self._isolation.enter(self._id, alone=self._is_about_workers):
            return None
        line = self._next(window)
        if line is not None and self.is_suspect(line) and not self.save():
            self._progress.give_back(line)
            line = None
        if line is None:
            self._isolation.leave(self._id)
        return line

    def _next(self, window: int) -> str | None:
        """The first that is not refused."""
        while (line := self._progress.begin(window)) is not None:
            if not self._accusation.is_blocked(parse_json(self._progress.bodies[line].encode())):
                break
            self._progress.end(line, blocked_failure(line, self._hours))
        return line

    def is_suspect(self, line: str) -> bool:
        """Must it be alone?"""
        return line in self._progress.crashes

    def ended(self, line: str, outcome: EngineOutcome) -> bool:
        """A line has ended in the engine. False: it is not over with it, and it will run again."""
        self._isolation.leave(self._id)
        match outcome:
            case EngineLost(was_running=False):
                self._progress.give_back(line)
                return False
            case (
                EngineLost() | Failed(code="engine_error")
            ):  # what all in a step are told that failed and did not end it
                if not self._progress.crashed(line, self._most):
                    self._tally.add(CounterName.LINES_RETRIED, self._asked["model"])
                    return False
                if isinstance(outcome, EngineLost):
                    self._convict(line)
        return True

    def stopped(self, line: str) -> None:
        """A line was stopped, and will run again."""
        self._isolation.leave(self._id)
        self._progress.give_back(line)

    def save(self) -> bool:
        """Write the numbers that changed. A sick database is said, not raised; LeaseLost is."""
        numbers = dict(self._progress.unsaved)
        if not numbers:
            return True
        try:
            with self._database.begin() as connection:
                saved = connection.execute(shards.mark_lines(self._id, self._fence, numbers)).all()
        except SQLAlchemyError as error:
            log.warning("suspects_not_saved", shard=self._id, reason=type(error).__name__)
            return False
        if not saved:
            raise LeaseLost
        self._progress.saved(numbers)
        return True

    def written(self, connection: Connection, lines: set[str]) -> None:
        """These results are stored: in the same transaction, refuse what is like the convicted among them."""
        kept = timedelta(hours=self._hours)
        for line in sorted(lines & self._convicted):
            accused = self._accusation.entry(parse_json(self._progress.bodies[line].encode()), line)
            connection.execute(quarantine.record_crash(accused, crashes=self._most, most=self._most, kept=kept))

    def close(self) -> None:
        """Nothing of this shard runs any more."""
        self._isolation.forget(self._id)

    def _convict(self, line: str) -> None:
        log.warning("line_convicted", line=line, shard=self._id, crashes=self._progress.crashes[line])
        self._convicted.add(line)
        self._tally.add(CounterName.LINES_BLOCKED, self._asked["model"])
        self._accusation.block(parse_json(self._progress.bodies[line].encode()))
