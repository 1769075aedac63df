"""Poison tracker: crash counts and quarantined requests of one claimed shard, in the database.

A crash count is stored before its line begins, so that the worker that claims the shard after a crash goes on from there.
"""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from core.counters import CounterName
from db import quarantine, shards
from db.quarantine import QuarantineEntry
from db.shards import ClaimedShard
from engine.types import Failed
from workers.context import WorkerContext
from workers.generation.quarantine import JsonObject, QuarantineView, blocked_failure, read_quarantine
from workers.shards.shard_progress import Line, ShardProgress

log = structlog.get_logger()


class LeaseLost(Exception):
    """Another worker has the shard; results that are not written yet must not be written."""


class PoisonTracker:
    """The counts and quarantine entries of one claimed shard."""

    def __init__(self, context: WorkerContext, claim: ClaimedShard) -> None:
        self._database = context.database
        self._counters = context.counters
        self._hours = context.settings.quarantine_hours
        self._max_crashes = context.settings.line_attempts
        self._id = claim.id
        self._fence = claim.fence
        self._scope = {"tenant_id": claim.tenant_id, "model": claim.model, "endpoint": claim.endpoint}
        self._quarantine = QuarantineView(**self._scope, entries={})
        self._blocked: dict[str, QuarantineEntry] = {}

    def load(self, connection: Connection) -> None:
        """Read the quarantine of the shard's tenant and model."""
        self._quarantine = read_quarantine(connection, **self._scope, kept=self._kept)

    def find_failure(self, line: Line) -> Failed | None:
        """The failure of a line with a blocked body; None when it may run."""
        return blocked_failure(line.id, self._hours) if self._quarantine.is_blocked(_fields(line)) else None

    def block(self, line: Line) -> None:
        """Refuse the line's body from now on: in this shard at once, elsewhere when its result is written."""
        log.warning("line_blocked", line=line.id, shard=self._id, crashes=line.crashes)
        self._counters.add(CounterName.LINES_BLOCKED, self._quarantine.model)
        self._quarantine.block(_fields(line))
        self._blocked[line.id] = self._quarantine.entry(_fields(line), line.id)

    def save(self, progress: ShardProgress) -> bool:
        """Store the crash counts that changed. False, and a log line, when the database fails; raises LeaseLost."""
        crashes = dict(progress.unsaved)
        if not crashes:
            return True
        try:
            with self._database.begin() as connection:
                saved = connection.execute(shards.mark_lines(self._id, self._fence, crashes)).all()
        except SQLAlchemyError as error:
            log.warning("crash_counts_not_saved", shard=self._id, reason=type(error).__name__)
            return False
        if not saved:
            raise LeaseLost
        progress.saved(crashes)
        return True

    def record_blocked(self, connection: Connection, lines: set[str]) -> None:
        """Quarantine the blocked ones among these lines, in the transaction that stores their results."""
        for line in sorted(lines & self._blocked.keys()):
            statement = quarantine.record_crash(
                self._blocked[line], crashes=self._max_crashes, most=self._max_crashes, kept=self._kept
            )
            connection.execute(statement)

    @property
    def _kept(self) -> timedelta:
        return timedelta(hours=self._hours)


def _fields(line: Line) -> JsonObject:
    assert line.parsed is not None, "it was parsed when it began"
    return line.parsed.fields
