"""Dispatcher: sends requests to the servers of a model, chats first, and tries again what failed without an answer.

A batch line waits out every pause of a server. A chat waits for a short patience, from the first trouble that it meets, and
hardly at all where that is known to be in vain. An exclusive request runs while no other does. Everything runs in the event loop,
whose clock is the only one.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from engine.errors import EngineError
from engine.log import log_stderr
from engine.types import (
    Choice,
    Delta,
    Embedded,
    Failed,
    Finished,
    FinishReason,
    ForwardRequest,
    Priority,
    RequestKey,
    ToolCallDelta,
    Usage,
)
from engine.upstream.attempt import attempt, request_body
from engine.upstream.replicas import Replica
from engine.upstream.trouble import UNAVAILABLE, Broken, Problem, Refused, Trouble, Uniform, Unreachable, back_off, draw

PATIENCE_SECONDS: Final = 10.0
_LEAST_PATIENCE_SECONDS: Final = 1.0
Output = Delta | Finished | Embedded | Failed
_Outcome = Finished | Embedded | Failed
_NO_USAGE: Final = Usage(prompt_tokens=0, completion_tokens=0)
_UNAVAILABLE: Final = Problem(message="No server of this model answers.", code=UNAVAILABLE, status=503)


@dataclass(slots=True, eq=False)
class _Job:
    """A request until its end. It is in a queue, or has a `task` at a `replica`, or a `timer` before it is queued again."""

    client: str
    request: ForwardRequest
    is_watched: bool
    began: float
    num_attempts: int = 0
    first_text_at: float | None = None  # of a stream
    is_cancelled: bool = False
    problem: Problem | None = None
    deadline: asyncio.Handle | None = None  # of a chat that has met trouble
    is_late: bool = False  # its patience has ended
    replica: Replica | None = None
    task: asyncio.Task[_Outcome] | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def has_sent_text(self) -> bool:
        """Has the client a part of the answer?"""
        return self.first_text_at is not None

    @property
    def key(self) -> RequestKey:
        """The key in the in-flight log."""
        return self.client, self.request.id

    @property
    def is_chat(self) -> bool:
        """Does somebody wait for it?"""
        return self.request.priority is Priority.CHAT


class Dispatcher:
    """The requests of all clients. `emit` sends an output to a client; `record_inflight` gets the requests at the servers.

    A request whose answer breaks counts as being at its server for `settle_seconds` more, within which the end of a server that
    the engine has started is found.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        model: str,
        emit: Callable[[str, Output], None],
        *,
        record_inflight: Callable[[Collection[RequestKey]], None] = lambda _: None,
        redact: Callable[[str], str] = lambda text: text,
        timeout_seconds: float = 600.0,
        max_attempts: int = 3,
        settle_seconds: float = 0.0,
        uniform: Uniform = draw,
    ) -> None:
        self.num_answers = 0
        self.num_prompt_tokens = self.num_cached_tokens = self.num_output_tokens = 0  # by the usage in answers
        self._replicas = replicas
        self._model = model
        self._emit = emit
        self._record_inflight = record_inflight
        self._redact = redact
        self._timeout_seconds = timeout_seconds
        self._max_attempts = max_attempts
        self._settle_seconds = settle_seconds
        self._uniform = uniform
        self._jobs: dict[RequestKey, _Job] = {}
        self._running: dict[RequestKey, _Job] = {}
        self._chats: deque[_Job] = deque()
        self._lines: deque[_Job] = deque()
        self._was_exclusive = False
        for replica in replicas:
            replica.on_wake = self._pump

    @property
    def num_running(self) -> int:
        """Requests at the servers."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait here."""
        return len(self._jobs) - len(self._running)

    def submit(self, client: str, request: ForwardRequest) -> None:
        """Start a request."""
        job = _Job(client, request, is_watched=request.stream, began=asyncio.get_running_loop().time())
        self._jobs[job.key] = job
        self._queue(job).append(job)
        self._pump()

    def cancel(self, client: str, request_ids: Collection[str] | None) -> None:
        """Stop these requests of a client, or with None all of them; unknown ids are ignored."""
        keys = [key for key in self._jobs if key[0] == client] if request_ids is None else None
        for key in keys if keys is not None else [(client, request_id) for request_id in request_ids or ()]:
            job = self._jobs.get(key)
            if job is None:
                continue
            job.is_cancelled = True
            if job.task is not None:
                job.task.cancel()
            else:
                self._end_waiting(job, _cancelled(key[1]))
        self._pump()

    def stream(self, client: str, request_ids: Collection[str]) -> None:
        """Send the text of these requests: as it comes if they are chats that still wait, otherwise at their end."""
        for request_id in request_ids:
            if (job := self._jobs.get((client, request_id))) is not None:
                job.is_watched = True

    def _queue(self, job: _Job) -> deque[_Job]:
        return self._chats if job.is_chat else self._lines

    def _pump(self) -> None:
        """Start all that may start now."""
        while (job := self._next()) is not None:
            replica = None if job.request.exclusive and self._running else self._choose(job)
            if replica is None:
                break
            self._queue(job).popleft()
            self._start(job, replica)
        if not any(replica.is_available for replica in self._replicas):
            for chat in self._chats:
                self._set_deadline(chat, None)
        self._record_inflight(list(self._running))

    def _next(self) -> _Job | None:
        """The request that starts next. An exclusive one waits for the end of all others, and they wait for it.

        After an exclusive line chats go first, so that they wait for one at most.
        """
        if any(job.request.exclusive for job in self._running.values()):
            return None
        for queue in (self._chats, self._lines):
            if queue and queue[0].request.exclusive and not (self._was_exclusive and self._chats):
                return queue[0]
        return next((queue[0] for queue in (self._chats, self._lines) if queue), None)

    def _choose(self, job: _Job) -> Replica | None:
        """The replica with the least load that has room; another one than where the request failed, if there is one."""
        are_chats_active = bool(self._chats) or any(replica.num_chats for replica in self._replicas)
        priority = job.request.priority
        free = [
            replica
            for replica in self._replicas
            if replica.is_available and replica.has_room(priority, are_chats_active=are_chats_active)
        ]
        return min(free, key=lambda each: (each is job.replica, each.num_running / each.limiter.limit), default=None)

    def _start(self, job: _Job, replica: Replica) -> None:
        job.replica = replica
        replica.add(job.request.priority, 1)
        self._was_exclusive = job.request.exclusive
        self._running[job.key] = job
        job.task = asyncio.get_running_loop().create_task(self._attempt(job, replica))
        epoch = replica.limiter.epoch
        job.task.add_done_callback(lambda task: self._on_done(job, replica, epoch, task))

    async def _attempt(self, job: _Job, replica: Replica) -> _Outcome:
        """Lines are asked for without a stream, so that one that is watched may be tried again."""
        is_streamed = job.is_watched and job.is_chat

        def send(deltas: list[Delta]) -> None:
            job.first_text_at = job.first_text_at or asyncio.get_running_loop().time()
            replica.note_text()
            for delta in deltas:
                self._emit(job.client, delta)

        body = request_body(job.request.body, self._model, is_streamed=is_streamed)
        try:
            return await attempt(
                replica.transport, job.request, body, self._timeout_seconds, send if is_streamed else None
            )
        except (Broken, Unreachable):
            if self._settle_seconds:
                await asyncio.sleep(self._settle_seconds)
            raise

    def _on_done(self, job: _Job, replica: Replica, epoch: int, task: asyncio.Task[_Outcome]) -> None:
        """Take over what became of an attempt."""
        is_full = replica.num_running >= replica.limiter.limit
        replica.add(job.request.priority, -1)
        job.task = None
        del self._running[job.key]
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            self._end(job, _cancelled(job.request.id))
        elif error is None:
            outcome = task.result()
            replica.note_answer()
            replica.limiter.add_answer(epoch, _work(outcome), is_full=is_full)
            self._end(job, outcome)
        elif isinstance(error, Trouble):
            replica.note_trouble(error, epoch)
            self._on_trouble(job, error)
        elif isinstance(error, Refused):
            replica.note_answer()
            self._end(job, error.problem.failed(job.request.id, self._redact))
        else:
            if not isinstance(error, EngineError):
                text = "".join(traceback.format_exception(error))
                log_stderr(self._redact(f"request {job.request.id} failed: {text}"))
            reason = error if isinstance(error, EngineError) else EngineError()
            self._end(job, Failed.from_error(job.request.id, reason))
        self._pump()

    def _on_trouble(self, job: _Job, trouble: Trouble) -> None:
        """Queue it again, at once where only the server has to pause; or end it."""
        job.problem = trouble.problem
        if job.is_cancelled:
            self._end(job, _cancelled(job.request.id))
            return
        if job.is_chat:
            self._set_deadline(job, trouble.problem)
        if isinstance(trouble, Broken):
            job.num_attempts += 1
        if job.has_sent_text or job.is_late or job.num_attempts >= self._max_attempts:
            self._end(job, self._failed(job))
        elif isinstance(trouble, Broken):
            seconds = back_off(job.num_attempts, self._uniform)
            job.timer = asyncio.get_running_loop().call_later(seconds, self._requeue, job)
        else:
            self._queue(job).appendleft(job)

    def _requeue(self, job: _Job) -> None:
        job.timer = None
        self._queue(job).appendleft(job)
        self._pump()

    def _set_deadline(self, job: _Job, problem: Problem | None) -> None:
        """Begin the patience of a chat."""
        if problem is None:
            problem = next((replica.problem for replica in self._replicas if replica.problem is not None), None)
        job.problem = problem or job.problem
        if job.deadline is None:
            job.deadline = asyncio.get_running_loop().call_later(self._patience(), self._on_deadline, job)

    def _patience(self) -> float:
        """Seconds that a chat waits: none if all servers ask for a longer pause, and few if all have been away for longer."""
        if all(replica.pause_seconds > PATIENCE_SECONDS for replica in self._replicas):
            return 0.0
        if all(replica.silent_seconds > PATIENCE_SECONDS for replica in self._replicas):
            return _LEAST_PATIENCE_SECONDS
        return PATIENCE_SECONDS

    def _on_deadline(self, job: _Job) -> None:
        job.is_late = True
        if job.task is None:
            self._end_waiting(job, self._failed(job))

    def _failed(self, job: _Job) -> Failed:
        return (job.problem or _UNAVAILABLE).failed(job.request.id, self._redact)

    def _end_waiting(self, job: _Job, outcome: _Outcome) -> None:
        """End a request that is at no server."""
        if job.timer is None:
            self._queue(job).remove(job)
        self._end(job, outcome)

    def _end(self, job: _Job, outcome: _Outcome) -> None:
        """Send the end of a request, once. A watched one that was not streamed has its text sent before."""
        del self._jobs[job.key]
        for timer in (job.timer, job.deadline):
            if timer is not None:
                timer.cancel()
        self.num_answers += 1
        if not isinstance(outcome, Failed):
            self.num_prompt_tokens += outcome.usage.prompt_tokens
            self.num_cached_tokens += outcome.usage.cached_tokens
            self.num_output_tokens += outcome.usage.completion_tokens
        if job.first_text_at is not None and isinstance(outcome, Finished):
            outcome = msgspec.structs.replace(outcome, first_token_seconds=job.first_text_at - job.began)
        elif job.is_watched and isinstance(outcome, Finished):
            for choice in outcome.choices:
                self._emit(job.client, _delta(outcome, choice))
        self._emit(job.client, outcome)


def _delta(finished: Finished, choice: Choice) -> Delta:
    """A whole answer in one delta."""
    calls = [
        ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments)
        for index, call in enumerate(choice.tool_calls)
    ]
    return Delta(
        request_id=finished.request_id,
        num_tokens=finished.usage.completion_tokens,
        index=choice.index,
        text=choice.text,
        reasoning=choice.reasoning,
        tool_calls=calls,
        logprobs=choice.logprobs or [],
    )


def _work(outcome: _Outcome) -> int:
    """The tokens of an answer, by which throughput is measured."""
    if isinstance(outcome, Failed):
        return 1
    return outcome.usage.completion_tokens or outcome.usage.prompt_tokens


def _cancelled(request_id: str) -> Finished:
    choice = Choice(reason=FinishReason.CANCELLED, text="")
    return Finished(request_id=request_id, choices=[choice], usage=_NO_USAGE)
