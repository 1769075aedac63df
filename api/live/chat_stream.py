"""Responses of endpoints that stream OpenAI's chunks: the worker's frames, forwarded without decoding them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import Request
from fastapi.responses import Response

from api.http.sse import DONE, PING, data_events, error_event
from api.live.follower import FramesReceived, Idle, JobEnded, JobUpdate
from api.live.live_job import FallBack, LiveJob, LiveJobs, ResponseRenderer
from api.live.submission import Submission, cancelled_problem
from core.queue.events import EventKind
from core.schemas.chunks import chunks_of


async def respond_with_chunks(
    request: Request, live_jobs: LiveJobs, submission: Submission, fall_back: FallBack | None = None
) -> Response:
    """Run the job and respond with its stored answer, or with the stream of its chunks."""
    include_usage = submission.body.include_usage
    renderer = ResponseRenderer(stream=lambda live, first: _chunks(live, first, include_usage=include_usage))
    return await live_jobs.run_and_respond(request, submission, renderer, fall_back)


async def _chunks(live: LiveJob, first: JobUpdate, *, include_usage: bool) -> AsyncGenerator[bytes]:
    has_frames = False
    async for update in live.updates(first):
        match update:
            case FramesReceived(frames=frames):
                has_frames = True
                yield data_events(frames)
            case Idle():
                yield PING
            case JobEnded(kind=EventKind.DONE):
                if not has_frames:
                    yield data_events(chunks_of(await live.answer(update), include_usage=include_usage))
                yield DONE
            case JobEnded(problem=problem):
                yield error_event(problem or cancelled_problem())
