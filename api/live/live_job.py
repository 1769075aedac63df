"""Live jobs: submit a job, follow it, and send its answer while the client waits, as one body or as a stream."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final

from fastapi import Request
from fastapi.responses import Response

from api.access.admission import no_free_stream
from api.dependencies import from_app
from api.http.event_stream import EventStream, unless_disconnected
from api.live.follower import FramesReceived, Idle, JobEnded, JobUpdate
from api.live.job_client import JobClient
from api.live.submission import Submission, cancelled_problem
from api.services.metrics import Metrics
from api.services.model_states import ModelStates
from api.services.stream_limiter import NoFreeStream, StreamLimiter
from core.errors import SERVER_ERROR, ApiError, Problem, unavailable
from core.queue.events import EventKind

_RELAY_SECONDS: Final = 0.5
_FALLBACK_SECONDS: Final = 15.0  # longer than an upstream waits for its server before a chat fails
_UNREACHABLE: Final = (429, 502, 503, 504)  # of a server upstream; our own engines fail with a 500
FallBack = Callable[[Submission], Awaitable[Submission | None]]
_TIMED_OUT = Problem(
    status=503,
    message="The answer took too long for a request that waits. Use a stream, a batch, or POST /v1/jobs.",
    type=SERVER_ERROR,
    code="request_timeout",
)


class LiveJob:
    """A job that a client waits for; `close` cancels it unless it has ended.

    `check_wait` raises an ApiError when there is nothing to wait for any more; it is called while no frame has come.
    """

    def __init__(
        self,
        jobs: JobClient,
        streams: StreamLimiter,
        shutting_down: asyncio.Event,
        submission: Submission,
        check_wait: Callable[[], Awaitable[None]],
    ) -> None:
        self._jobs = jobs
        self._streams = streams
        self._shutting_down = shutting_down
        self._submission = submission
        self._check_wait = check_wait
        self._stack = AsyncExitStack()
        self._is_ended = False
        self._is_submitted = False

    async def begin(self) -> None:
        """Subscribe, insert the job, send its ticket: in this order, so that no event is missed."""
        relay, submission = self._jobs.relay, self._submission
        if not await relay.wait_connected(_RELAY_SECONDS):
            raise _no_queue()
        if submission.body.is_stream:
            await self._hold_stream()
        subscription = await self._stack.enter_async_context(relay.follow(submission.job_id, submission.caller.key_id))
        self._updates = self._jobs.follower(subscription, submission.tenant).updates()
        self._is_submitted = True
        is_sent = await self._jobs.submit(submission, durable=False)
        if not is_sent or not relay.is_connected:
            raise _no_queue()

    async def _hold_stream(self) -> None:
        caller = self._submission.caller
        limit = caller.limits.concurrent_streams
        if limit is None or caller.key_id is None:
            return
        try:
            await self._stack.enter_async_context(self._streams.hold(caller.key_id, limit))
        except NoFreeStream:
            raise no_free_stream(limit) from None

    async def next(self) -> JobUpdate:
        """Return the next update."""
        update = await anext(self._updates)
        self._is_ended = isinstance(update, JobEnded) and not update.is_local
        return update

    async def updates(self, first: JobUpdate) -> AsyncIterator[JobUpdate]:
        """Yield all updates, beginning with `first`, which was taken already."""
        update, is_begun = first, isinstance(first, FramesReceived)
        yield update
        while not isinstance(update, JobEnded):
            update = await self.next()
            is_begun = is_begun or isinstance(update, FramesReceived)
            if isinstance(update, Idle) and not is_begun:
                try:
                    await self._check_wait()
                except ApiError as error:
                    update = JobEnded(EventKind.FAILED, error.problem, is_local=True)
            yield update

    async def close(self) -> None:
        """Unsubscribe and cancel the job. At shutdown a streamed job goes on, since its client can resume it at
        `/v1/jobs/{id}/events`. Safe to call twice.
        """
        await self._stack.aclose()
        is_resumable = self._shutting_down.is_set() and self._submission.body.is_stream
        if self._is_submitted and not self._is_ended and not is_resumable:
            self._is_ended = True
            await self._jobs.cancel(self._submission.job_id)

    async def answer(self, ended: JobEnded) -> str:
        """Return the stored answer of a completed job."""
        row = ended.row or await self._jobs.find(self._submission.job_id, self._submission.tenant)
        if row is None or row.answer is None:
            raise unavailable("The answer could not be read.")
        return str(row.answer)


class _JobFailed(ApiError):
    """The job itself has failed, before anything of its answer was sent."""


def _ended_error(ended: JobEnded, renderer: ResponseRenderer) -> ApiError:
    problem = renderer.problem(ended.problem or cancelled_problem())
    return ApiError(problem) if ended.is_local else _JobFailed(problem)


def _may_fall_back(error: ApiError) -> bool:
    """Is it the model that cannot be reached, or is not ready? Errors of a request, and crashes, would only be repeated."""
    is_unreachable = isinstance(error, _JobFailed) and error.problem.status in _UNREACHABLE
    return is_unreachable or error.problem.code == "model_not_ready"


def _no_queue() -> ApiError:
    return unavailable("The queue does not answer, so this cannot be answered at once. Batches still work.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRenderer:
    """The wire format of an endpoint: `whole` makes a body from the stored answer, `stream` events from the updates of a job, and
    `problem` the error of the endpoint from that of the job.
    """

    stream: Callable[[LiveJob, JobUpdate], AsyncGenerator[bytes]]
    whole: Callable[[str], str] = lambda answer: answer
    problem: Callable[[Problem], Problem] = lambda problem: problem


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJobs:
    """Runs jobs that clients wait for."""

    jobs: JobClient
    streams: StreamLimiter
    metrics: Metrics
    models: ModelStates
    shutting_down: asyncio.Event
    timeout_seconds: float

    async def run_and_respond(
        self, request: Request, submission: Submission, renderer: ResponseRenderer, fall_back: FallBack | None = None
    ) -> Response:
        """Run a job and respond with its answer, or with that of another model that `fall_back` finds.

        Raises the error of the first model if there is no other one.
        """
        first_error: ApiError | None = None
        while True:
            try:
                return await self._run(request, submission, renderer)
            except ApiError as error:
                if fall_back is None or not _may_fall_back(error):
                    raise
                first_error = first_error or error
                other = await fall_back(submission)
                if other is None:
                    raise first_error from None
                submission = other

    async def _run(self, request: Request, submission: Submission, renderer: ResponseRenderer) -> Response:
        """Run one job. The first event decides the status code."""
        began = time.monotonic()
        check_wait = partial(self._check_wait, submission.model.name, began + self.timeout_seconds)
        live = LiveJob(self.jobs, self.streams, self.shutting_down, submission, check_wait)
        try:
            await live.begin()
            is_stream = submission.body.is_stream
            silent_until = began + (_FALLBACK_SECONDS if submission.others else 0)
            first = await unless_disconnected(
                request, self._first_event(live, check_wait, silent_until if is_stream else math.inf)
            )
            self.metrics.first_event_seconds.observe(time.monotonic() - began)
            if first is None:
                await live.close()
                return Response(status_code=499)
            if isinstance(first, JobEnded) and first.kind is not EventKind.DONE:
                raise _ended_error(first, renderer)
            if submission.body.is_stream:
                return EventStream(self._streamed(live, renderer.stream(live, first)))
            assert isinstance(first, JobEnded), "a plain request's first event is its last"
            answer = await live.answer(first)
        except BaseException:
            await asyncio.shield(live.close())
            raise
        await live.close()
        return Response(renderer.whole(answer), media_type="application/json")

    async def _first_event(
        self, live: LiveJob, check_wait: Callable[[], Awaitable[None]], silent_until: float
    ) -> JobUpdate:
        """The first update other than Idle, or any that comes after `silent_until` by the monotonic clock.

        A stream that waits, as for a model that loads, begins with a comment that keeps its connection alive; with that, its
        headers are sent, and no other model can answer it.
        """
        while isinstance(update := await live.next(), Idle):
            await check_wait()
            if time.monotonic() >= silent_until:
                break
        return update

    async def _check_wait(self, model: str, deadline: float) -> None:
        """Raise the 503 of a model that does not start, or after `timeout_seconds`."""
        await self.models.check_startable(model)
        if time.monotonic() > deadline:
            raise ApiError(_TIMED_OUT, {"x-should-retry": "false"})

    async def _streamed(self, live: LiveJob, data: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
        """The stream, counted among those that are open; its job is cancelled when the client disconnects."""
        with self.metrics.open_streams.track_inprogress():
            try:
                async with aclosing(data):
                    async for piece in data:
                        yield piece
            finally:
                await asyncio.shield(live.close())


LiveJobsDep = Annotated[LiveJobs, from_app("live_jobs")]
