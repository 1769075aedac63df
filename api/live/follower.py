"""Follower of one job: its frames in order, each once, and its end.

Frames are numbered: frames already seen are skipped, and a gap is filled from the replay list, or else decided by the row. Frames
of two attempts are never mixed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.services.relay import Subscription
from api.services.waiters import WaitEnded
from core.errors import SERVER_ERROR, Problem
from core.queue.events import Event, EventKind
from core.states import JobState
from db.connections import is_transient
from db.jobs import JobRow
from db.query import Query

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FramesReceived:
    """Frames of the stream; the first one has number `seq`."""

    seq: int
    frames: list[bytes]


@dataclass(frozen=True, slots=True)
class Idle:
    """No event for a while; the job is still running."""


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The job has ended; `kind` is never FRAMES. `row` is set when the end was read from the row.

    With `is_local` only this process stops following, for the reason in `problem`; the job goes on.
    """

    kind: EventKind
    problem: Problem | None = None
    row: JobRow | None = None
    is_local: bool = False


JobUpdate = FramesReceived | Idle | JobEnded

_LOST_FRAMES = Problem(
    status=500,
    message="Part of this stream was lost; the whole answer is in the job.",
    type=SERVER_ERROR,
    code="stream_interrupted",
)
_RESTARTED = Problem(
    status=500,
    message="The worker stopped in the middle of this answer and the job was started again. Send the request again.",
    type=SERVER_ERROR,
    code="stream_interrupted",
)
_TOO_SLOW = Problem(
    status=500, message="This stream was read too slowly.", type=SERVER_ERROR, code="stream_interrupted"
)


class Follower:
    """Follows a job through a subscription; `next_seq` is the number of the first frame not seen yet.

    `find` returns the statement that selects the job's row. After `silence_seconds` without an event the row is read: the job may
    have ended without one.
    """

    def __init__(
        self,
        database: AsyncEngine,
        subscription: Subscription,
        find: Callable[[], Query[JobRow]],
        *,
        silence_seconds: float,
        next_seq: int = 0,
    ) -> None:
        self._database = database
        self._subscription = subscription
        self._find = find
        self._silence_seconds = silence_seconds
        self._attempt: int | None = None
        self.next_seq = next_seq

    async def updates(self, *, from_replay: bool = False) -> AsyncIterator[JobUpdate]:
        """Yield updates until the job has ended, with `from_replay` beginning with those on the replay list."""
        updates = await self._catch_up() if from_replay else []
        while True:
            for update in updates:
                yield update
                if isinstance(update, JobEnded):
                    return
            updates = await self._next()

    async def _catch_up(self) -> list[JobUpdate]:
        updates = await self._replayed()
        if not _has_ended(updates) and (ended := await self._read_end()) is not None:
            updates.append(self._unless_incomplete(ended))
        return updates

    async def _next(self) -> list[JobUpdate]:
        try:
            event = await self._subscription.get(self._silence_seconds)
        except TimeoutError:
            ended = await self._read_end()
            return [Idle()] if ended is None else [*await self._replayed(), self._unless_incomplete(ended)]
        except WaitEnded as wait:
            return [JobEnded(EventKind.FAILED, wait.problem, is_local=True)]
        return await self._on_event(event)

    def _unless_incomplete(self, ended: JobEnded) -> JobEnded:
        """A row does not count the frames: after some of them, the others may have been lost."""
        is_incomplete = ended.kind is EventKind.DONE and self.next_seq > 0
        return JobEnded(EventKind.FAILED, _LOST_FRAMES) if is_incomplete else ended

    async def _on_event(self, event: Event) -> list[JobUpdate]:
        if self._subscription.is_overflowed:
            return [JobEnded(EventKind.FAILED, _TOO_SLOW)]
        if self._attempt is not None and event.attempt < self._attempt:
            return []
        if self._attempt is not None and event.attempt > self._attempt and self.next_seq > 0:
            return [JobEnded(EventKind.FAILED, _RESTARTED)]
        self._attempt = event.attempt
        updates = await self._replayed() if event.seq > self.next_seq else []
        if _has_ended(updates):
            return updates
        if event.seq > self.next_seq:
            ended = await self._read_end() or JobEnded(EventKind.FAILED, _LOST_FRAMES)
            return [*updates, self._unless_incomplete(ended)]
        return [*updates, *self._unseen(event)]

    def _unseen(self, event: Event) -> list[JobUpdate]:
        """The frames of an event that were not seen yet, or its end."""
        if event.kind is not EventKind.FRAMES:
            return [JobEnded(event.kind, event.problem)]
        frames = event.frames[self.next_seq - event.seq :]
        if not frames:
            return []
        update = FramesReceived(self.next_seq, frames)
        self.next_seq += len(frames)
        return [update]

    async def _replayed(self) -> list[JobUpdate]:
        """The unseen events of the latest attempt on the replay list, up to the first gap."""
        events = await self._subscription.replay()
        latest = max((event.attempt for event in events), default=0)
        if events and self._attempt not in (None, latest) and self.next_seq > 0:
            return [JobEnded(EventKind.FAILED, _RESTARTED)]
        updates: list[JobUpdate] = []
        for event in events:
            if event.attempt == latest and event.seq <= self.next_seq:
                self._attempt = latest
                updates += self._unseen(event)
                if _has_ended(updates):
                    break
        return updates

    async def _read_end(self) -> JobEnded | None:
        """The end of the job from its row; None while it runs, and while the database does not respond."""
        try:
            async with self._database.connect() as connection:
                row = await self._find().async_fetch_optional(connection)
        except SQLAlchemyError as error:
            if not is_transient(error):
                raise
            log.warning("job_row_not_read", reason=type(error).__name__)
            return None
        if row is None:
            return JobEnded(EventKind.FAILED, _LOST_FRAMES)
        match row.state:
            case JobState.COMPLETED:
                return JobEnded(EventKind.DONE, row=row)
            case JobState.FAILED | JobState.EXPIRED:
                return JobEnded(EventKind.FAILED, Problem.from_json(str(row.problem)), row)
            case JobState.CANCELLED:
                return JobEnded(EventKind.CANCELLED, row=row)
            case JobState.QUEUED | JobState.RUNNING:
                return None


def _has_ended(updates: list[JobUpdate]) -> bool:
    return bool(updates) and isinstance(updates[-1], JobEnded)
