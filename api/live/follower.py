"""Following one job: its frames in order, each once, and how it ended.

Knows events, the replay list and the row; nothing of HTTP. The rules: frames are numbered, so what was seen is skipped and
what is missing is noticed; a gap is filled from the replay list, else the row decides; two attempts are never spliced.
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
    """Some frames; the first one has number `seq`."""

    seq: int
    frames: list[bytes]


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing happened for a while; the job is still at it."""


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The job is over; `kind` is never FRAMES. `row` is there when it was read to find that out.

    With `is_local` it is only not followed any more, for the problem's reason; the job is still at it.
    """

    kind: EventKind
    problem: Problem | None = None
    row: JobRow | None = None
    is_local: bool = False


JobUpdate = FramesReceived | Idle | JobEnded

_LOST_TRACK = Problem(
    status=500,
    message="Part of this stream was lost; the whole answer is in the job.",
    type=SERVER_ERROR,
    code="stream_interrupted",
)
_RESTARTED = Problem(
    status=500,
    message="The worker stopped in the middle of this answer and the job was begun anew. Send the request again.",
    type=SERVER_ERROR,
    code="stream_interrupted",
)
_TOO_SLOW = Problem(
    status=500, message="This stream was read too slowly.", type=SERVER_ERROR, code="stream_interrupted"
)


class Follower:
    """Follows a job through a subscription; `next_seq` is the number of the first frame not seen yet.

    `find` makes the statement that selects its row, which is read after `silence_seconds` without an event: the job may have
    ended without one.
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

    async def items(self, *, from_replay: bool = False) -> AsyncIterator[JobUpdate]:
        """Until the job has ended. With `from_replay`, what happened before comes first."""
        if from_replay:
            async for item in self._replayed():
                yield item
                if isinstance(item, JobEnded):
                    return
            if (ended := await self._ended_row()) is not None:
                yield self._unless_torn(ended)
                return
        while True:
            try:
                event = await self._subscription.get(self._silence_seconds)
            except TimeoutError:
                async for item in self._after_silence():
                    yield item
                    if isinstance(item, JobEnded):
                        return
                continue
            except WaitEnded as told:
                yield JobEnded(EventKind.FAILED, told.problem, is_local=True)
                return
            async for item in self._take(event):
                yield item
                if isinstance(item, JobEnded):
                    return

    async def _after_silence(self) -> AsyncIterator[JobUpdate]:
        """Nothing came for a while: did it end without being heard?"""
        ended = await self._ended_row()
        if ended is None:
            yield Idle()
            return
        async for item in self._replayed():
            yield item
            if isinstance(item, JobEnded):
                return
        yield self._unless_torn(ended)

    def _unless_torn(self, ended: JobEnded) -> JobEnded:
        """An end that the row tells leaves open how many frames there were: after some of them, all may not have come."""
        return JobEnded(EventKind.FAILED, _LOST_TRACK) if ended.kind is EventKind.DONE and self.next_seq > 0 else ended

    async def _take(self, event: Event) -> AsyncIterator[JobUpdate]:
        if self._subscription.is_overflowed:
            yield JobEnded(EventKind.FAILED, _TOO_SLOW)
            return
        if self._is_of_older_attempt(event):
            return
        if self._is_of_newer_attempt(event):
            yield JobEnded(EventKind.FAILED, _RESTARTED)
            return
        self._attempt = event.attempt
        if event.seq > self.next_seq:
            async for item in self._replayed():
                yield item
                if isinstance(item, JobEnded):
                    return
        if event.seq > self.next_seq:
            yield self._unless_torn(await self._ended_row() or JobEnded(EventKind.FAILED, _LOST_TRACK))
            return
        if (fresh := self._fresh(event)) is not None:
            yield fresh

    def _is_of_older_attempt(self, event: Event) -> bool:
        return self._attempt is not None and event.attempt < self._attempt

    def _is_of_newer_attempt(self, event: Event) -> bool:
        return self._attempt is not None and event.attempt > self._attempt and self.next_seq > 0

    def _fresh(self, event: Event) -> JobUpdate | None:
        """What of an event was not seen yet."""
        if event.kind is not EventKind.FRAMES:
            return JobEnded(event.kind, event.problem)
        frames = event.frames[self.next_seq - event.seq :]
        if not frames:
            return None
        item = FramesReceived(self.next_seq, frames)
        self.next_seq += len(frames)
        return item

    async def _replayed(self) -> AsyncIterator[JobUpdate]:
        """What the replay list has of the latest attempt, from the first unseen frame on, without gaps."""
        events = await self._subscription.replay()
        latest = max((event.attempt for event in events), default=0)
        if events and self._attempt not in (None, latest) and self.next_seq > 0:
            yield JobEnded(EventKind.FAILED, _RESTARTED)
            return
        for event in events:
            if event.attempt == latest and event.seq <= self.next_seq:
                self._attempt = latest
                if (item := self._fresh(event)) is not None:
                    yield item
                if event.kind is not EventKind.FRAMES:
                    return

    async def _ended_row(self) -> JobEnded | None:
        """How the job ended, if its row says so. A database that does not answer is asked again after the next silence."""
        try:
            async with self._database.connect() as connection:
                row = await self._find().async_fetch_optional(connection)
        except SQLAlchemyError as error:
            if not is_transient(error):
                raise
            log.warning("row_not_read", reason=type(error).__name__)
            return None
        if row is None:
            return JobEnded(EventKind.FAILED, _LOST_TRACK)
        match row.state:
            case JobState.COMPLETED:
                return JobEnded(EventKind.DONE, row=row)
            case JobState.FAILED | JobState.EXPIRED:
                return JobEnded(EventKind.FAILED, Problem.from_json(str(row.problem)), row)
            case JobState.CANCELLED:
                return JobEnded(EventKind.CANCELLED, row=row)
            case JobState.QUEUED | JobState.RUNNING:
                return None
