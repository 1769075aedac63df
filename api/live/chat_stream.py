"""Answers of the endpoints whose streams are OpenAI's chunks: the worker's frames, passed on unread."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import Request
from fastapi.responses import Response

from api.dependencies import ApiState
from api.http.sse import DONE, PING, chunks_of, data_events, error_event
from api.live.follower import Ended, Frames, Item, Silence
from api.live.live_job import LiveJob, Shape, answer_now
from api.live.submission import Submission, cancelled_problem
from core.queue.events import EventKind


async def answer_in_chunks(request: Request, state: ApiState, submission: Submission) -> Response:
    """The answer, or the stream of it, as the job's worker writes it."""
    include_usage = submission.asked.include_usage
    shape = Shape(stream=lambda live, first: _chunks(live, first, include_usage=include_usage))
    return await answer_now(request, state, submission, shape)


async def _chunks(live: LiveJob, first: Item, *, include_usage: bool) -> AsyncGenerator[bytes]:
    has_frames = False
    async for item in live.items(first):
        match item:
            case Frames(frames=frames):
                has_frames = True
                yield data_events(frames)
            case Silence():
                yield PING
            case Ended(kind=EventKind.DONE):
                if not has_frames:
                    yield data_events(chunks_of(await live.answer(item), include_usage=include_usage))
                yield DONE
            case Ended(problem=problem):
                yield error_event(problem or cancelled_problem())
