"""A job that somebody waits for: submitted, followed, and answered at once, whole or as a stream.

Knows jobs, events and connections; what an answer looks like on the wire is its endpoint's `ResponseRenderer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final

from fastapi import Request
from fastapi.responses import Response

from api.access.admission import no_free_stream
from api.dependencies import AppState
from api.http.event_stream import EventStream, disconnected
from api.live.follower import Follower, Idle, JobEnded, JobUpdate, read_row
from api.live.submission import Submission, cancel, cancelled_problem, submit
from api.services.stream_limiter import NoFreeStream
from core.errors import SERVER_ERROR, ApiError, Problem, unavailable
from core.queue.events import EventKind
from db.jobs import find_job

_RELAY_SECONDS: Final = 0.5
_TIMED_OUT = Problem(
    status=503,
    message="The answer took too long for a request that waits. Use a stream, a batch, or POST /v1/jobs.",
    type=SERVER_ERROR,
    code="request_timeout",
)


class LiveJob:
    """A submitted job and its follower. `close` cancels the job unless it has ended."""

    def __init__(self, state: AppState, submission: Submission) -> None:
        self._state = state
        self._submission = submission
        self._stack = AsyncExitStack()
        self._is_ended = False
        self._is_submitted = False

    async def begin(self) -> None:
        """Subscribe, insert, send the ticket: in this order, so no event can be missed."""
        state, submission = self._state, self._submission
        if not await state.relay.wait_connected(_RELAY_SECONDS):
            raise _no_queue()
        if submission.asked.is_stream:
            await self._take_stream()
        subscription = await self._stack.enter_async_context(
            state.relay.follow(submission.job_id, submission.caller.key_id)
        )
        self._items = Follower(state, subscription, partial(find_job, submission.job_id, submission.tenant)).items()
        self._is_submitted = True
        is_sent = await submit(state, submission, durable=False)
        if not is_sent or not state.relay.is_connected:
            raise _no_queue()

    async def _take_stream(self) -> None:
        caller = self._submission.caller
        limit = caller.limits.concurrent_streams
        if limit is None or caller.key_id is None:
            return
        try:
            await self._stack.enter_async_context(self._state.streams.hold(caller.key_id, limit))
        except NoFreeStream:
            raise no_free_stream(limit) from None

    async def next(self) -> JobUpdate:
        """The next thing that happens."""
        item = await anext(self._items)
        self._is_ended = isinstance(item, JobEnded) and not item.is_ours
        return item

    async def items(self, first: JobUpdate) -> AsyncIterator[JobUpdate]:
        """Everything from its first item to its end."""
        item = first
        yield item
        while not isinstance(item, JobEnded):
            item = await self.next()
            yield item

    async def close(self) -> None:
        """Leave, and stop the job, unless it is this process that leaves: then a stream may go on at `/v1/jobs/{id}/events`.

        Safe to call twice.
        """
        await self._stack.aclose()
        goes_on = self._state.leaving.is_set() and self._submission.asked.is_stream
        if self._is_submitted and not self._is_ended and not goes_on:
            self._is_ended = True
            await cancel(self._state, self._submission.job_id)

    async def answer(self, ended: JobEnded) -> str:
        """The stored answer of a job that is done."""
        row = ended.row or await read_row(self._state, self._submission.job_id, self._submission.tenant)
        if row is None or row.answer is None:
            raise unavailable("The answer could not be read.")
        return str(row.answer)


def _no_queue() -> ApiError:
    return unavailable("The queue does not answer, so this cannot be answered at once. Batches still work.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRenderer:
    """How an endpoint says a job's answer: `whole` from the stored one, `stream` from the items of a live one, from the first
    on; and its `problem`s in its own words.
    """

    stream: Callable[[LiveJob, JobUpdate], AsyncGenerator[bytes]]
    whole: Callable[[str], str] = lambda answer: answer
    problem: Callable[[Problem], Problem] = lambda problem: problem


async def run_and_respond(
    request: Request, state: AppState, submission: Submission, shape: ResponseRenderer
) -> Response:
    """Run a job while its caller waits. The first event decides the status code."""
    live = LiveJob(state, submission)
    try:
        began = time.monotonic()
        await live.begin()
        first = await _unless_gone(request, _first_event(live, state))
        state.metrics.first_event_seconds.observe(time.monotonic() - began)
        if first is None:
            await live.close()
            return Response(status_code=499)
        if isinstance(first, JobEnded) and first.kind is not EventKind.DONE:
            raise ApiError(shape.problem(first.problem or cancelled_problem()))
        if submission.asked.is_stream:
            return EventStream(_streamed(state, live, shape.stream(live, first)))
        assert isinstance(first, JobEnded), "a plain request's first event is its last"
        answer = await live.answer(first)
    except BaseException:
        await asyncio.shield(live.close())
        raise
    await live.close()
    return Response(shape.whole(answer), media_type="application/json")


async def _first_event(live: LiveJob, state: AppState) -> JobUpdate:
    """The first event that is not silence."""
    deadline = time.monotonic() + state.settings.chat_timeout_seconds
    while isinstance(item := await live.next(), Idle):
        if time.monotonic() > deadline:
            raise ApiError(_TIMED_OUT, {"x-should-retry": "false"})
    return item


async def _unless_gone(request: Request, waiting: asyncio.Future[JobUpdate] | object) -> JobUpdate | None:
    """Wait, but not for a client that has left: then None."""
    task: asyncio.Task[JobUpdate] = asyncio.ensure_future(waiting)  # type: ignore[arg-type]
    leaving = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for each in (task, leaving):
            each.cancel()


async def _streamed(state: AppState, live: LiveJob, data: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    """The stream, counted; its job stops when the reader leaves."""
    with state.metrics.open_streams.track_inprogress():
        try:
            async with aclosing(data):
                async for piece in data:
                    yield piece
        finally:
            await asyncio.shield(live.close())
