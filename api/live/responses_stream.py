"""Stream of a response: the updates of its chat job become typed events.

The conversion of requests and answers is in `core.schemas.responses`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Final

import msgspec

from api.http.sse import PING
from api.live.follower import FramesReceived, Idle, JobEnded, JobUpdate
from api.live.job_client import JobClient
from api.live.response_records import ResponseRecord
from api.live.submission import cancelled_problem
from api.schemas.responses_events import LiveEvents, ResponseEvent, events_after
from api.services.waiters import WaitEnded, Waiters
from core.errors import SERVER_ERROR, Problem
from core.queue.events import EventKind
from core.schemas.responses.objects import (
    ResponseObject,
)
from core.states import FINAL_JOB_STATES, JobState
from db.jobs import JobRow

_POLL_SECONDS: Final = 1.0
_LOST: Final = "stream_interrupted"
_DELETED: Final = Problem(status=404, message="This response was deleted.", code="response_deleted")
_DIFFERENT: Final = Problem(
    status=500,
    message="The answer was generated again and differs from this stream. Retrieve the response to get all of it.",
    type=SERVER_ERROR,
    code=_LOST,
)


class ResponseStream:
    """The typed events of a response after a number, for a client with this key, from the updates of its job."""

    def __init__(
        self, jobs: JobClient, waiters: Waiters, record: ResponseRecord, key_id: str | None, starting_after: int = -1
    ) -> None:
        self._jobs = jobs
        self._waiters = waiters
        self._record = record
        self._key_id = key_id
        self._starting_after = starting_after
        self._live = LiveEvents(record.without_answer("in_progress"))

    async def events(self, updates: AsyncIterator[JobUpdate]) -> AsyncGenerator[bytes]:
        """Yield encoded events; `updates` begin with the first frame of the job."""
        try:
            async for data in self._events(updates):
                if data:
                    yield data
        except WaitEnded as ended:
            yield _encoded(self._live.error(ended.problem))

    async def _events(self, updates: AsyncIterator[JobUpdate]) -> AsyncIterator[bytes]:
        """The same, with empty bytes for an update without new events."""
        yield self._new(self._live.start())
        async for update in updates:
            match update:
                case FramesReceived(frames=frames):
                    yield self._new(
                        [event for frame in frames for event in self._live.add_chunk(msgspec.json.decode(frame))]
                    )
                case Idle():
                    yield PING
                case JobEnded():
                    async for data in self._ending(update):
                        yield data
                    return

    async def _ending(self, ended: JobEnded) -> AsyncIterator[bytes]:
        """The last events: from the job's row, also after frames were lost."""
        if ended.is_local:
            yield _encoded(self._live.error(ended.problem or cancelled_problem()))
            return
        row = ended.row
        is_lost = ended.problem is not None and ended.problem.code == _LOST
        if row is None and (is_lost or ended.kind is EventKind.DONE):
            with self._waiters.open(self._key_id) as waiter:
                while (row := await self._jobs.find(self._record.job_id, self._record.tenant)) is not None:
                    if row.state in FINAL_JOB_STATES:
                        break
                    yield PING
                    with suppress(TimeoutError):
                        await waiter.wait(_POLL_SECONDS)
                else:
                    yield _encoded(self._live.error(_DELETED))
                    return
        if row is not None and row.answer is not None:
            remaining = self._live.finish(self._record.with_answer(str(row.answer)))
            yield _encoded(self._live.error(_DIFFERENT)) if remaining is None else self._new(remaining)
            return
        yield self._new(self._live.fail(_failure(self._record, ended, row)))

    def _new(self, events: list[ResponseEvent]) -> bytes:
        """Encode the events after the number that the client has."""
        return _encoded(events_after(events, self._starting_after))


def _failure(record: ResponseRecord, ended: JobEnded, row: JobRow | None) -> ResponseObject:
    problem = Problem.from_json(str(row.problem)) if row is not None and row.problem else ended.problem
    is_cancelled = ended.kind is EventKind.CANCELLED or (row is not None and row.state == JobState.CANCELLED)
    if is_cancelled:
        return record.without_answer("cancelled")
    return record.without_answer("failed", problem or cancelled_problem())


def _encoded(events: list[ResponseEvent]) -> bytes:
    return b"".join(event.encode() for event in events)
