"""Job runner: claims a job that is no batch line, runs it in the engine, publishes its stream and records its end.

The engine's deltas become frames in the client's I/O thread; the thread of the Celery task only waits for the end.
Answers are committed before the end is published, so a reader that sees `done` finds the row.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
from sqlalchemy import Executable
from sqlalchemy.exc import SQLAlchemyError

from core.counters import CounterName
from core.errors import Problem
from core.failpoints import Point, failpoint
from core.queue.events import EventKind
from core.queue.names import chat_queue
from core.states import JobState
from core.strict_json import parse_json
from core.telemetry import names, tracing
from core.telemetry.names import Attributes
from core.telemetry.origin import Origin
from db import jobs, quarantine
from db.jobs import ClaimedJob
from db.query import Query
from db.response_events import EndedJob
from engine.process.client import EngineLost
from engine.types import Embedded, Failed, Finished, FinishReason, Priority
from workers.context import ServedModel, WorkerContext
from workers.generation.endpoints.base import (
    EndpointAdapter,
    EngineOutcome,
    EngineResult,
    RequestOrigin,
    ResponseHeader,
)
from workers.generation.endpoints.registry import read_accepted
from workers.generation.engine_call import EngineCall
from workers.generation.inference_span import end_inference, error_type_of, start_inference
from workers.generation.job_sink import GiveBack, JobSink
from workers.generation.problems import engine_crash
from workers.generation.quarantine import JsonObject, QuarantineView, as_exclusive, blocked_failure, read_quarantine
from workers.runtime.db_retry import retry_write
from workers.runtime.leases import Lease

if TYPE_CHECKING:
    from core.telemetry.sdk import Span

log = structlog.get_logger()

_COUNTERS: Final = {
    JobState.COMPLETED: CounterName.CHATS_COMPLETED,
    JobState.FAILED: CounterName.CHATS_FAILED,
    JobState.CANCELLED: CounterName.CHATS_CANCELLED,
}
_CUT: Final = (FinishReason.LENGTH, FinishReason.CONTENT_FILTER)


@dataclass(slots=True)
class _RunningJob:
    model: str
    body: JsonObject
    adapter: EndpointAdapter
    header: ResponseHeader
    lease: Lease
    call: EngineCall
    sink: JobSink
    quarantine: QuarantineView
    inference: Span | None
    begun_at: float  # by the monotonic clock


class JobRunner:
    """Runs jobs of any endpoint, one per calling thread. `on_begin` is called when one is to be claimed."""

    def __init__(self, context: WorkerContext, on_begin: Callable[[], None] = lambda: None) -> None:
        self._context = context
        self._on_begin = on_begin
        self._running: dict[str, _RunningJob] = {}
        self._claiming: dict[str, frozenset[str]] = {}  # the models that a claim in progress may be of
        self._num_begun: Counter[str] = Counter()
        self._retired: dict[str, bool] = {}  # models that take no more jobs; True: their jobs are given back
        self._lock = threading.Lock()
        self._is_draining = False

    def run(self, job_id: str) -> None:
        """Claim the job if it is still free, and run it to its end."""
        with self._lock:
            models = frozenset(self._context.models) - self._retired.keys()
            is_here = (
                job_id in self._running or job_id in self._claiming
            )  # the former lost its lease and has not ended yet
            if self._is_draining or is_here or not models:
                return
            self._claiming[job_id] = models
        self._on_begin()
        try:
            job = self._claim(job_id, models)
            if job is None:
                return
            failpoint(Point.CHAT_CLAIMED)
            self._run(job, self._context.models[job.model])
        except SQLAlchemyError as error:  # the sweeper sends another ticket
            log.warning("claim_failed", job=job_id, reason=type(error).__name__)
        finally:
            with self._lock:
                self._claiming.pop(job_id, None)

    def cancel(self, job_id: str) -> None:
        """Stop a job if it runs here; its slot is free within a step."""
        with self._lock:
            running = self._running.get(job_id)
        if running is not None:
            running.call.cancel()

    def drain(self, abort: bool = False) -> None:
        """Take no more jobs; with `abort`, give the running ones back unfinished."""
        self._is_draining = True
        with self._lock:
            running = list(self._running.values()) if abort else []
        for item in running:
            item.sink.outcomes.put(GiveBack())

    def is_idle(self) -> bool:
        """Does no job run here?"""
        return not self._running and not self._claiming

    def retire(self, model: str, *, abort: bool) -> None:
        """Take no more jobs of a model; with `abort`, give back the running ones of which nothing was sent."""
        with self._lock:
            self._retired[model] = abort
            running = [each for each in self._running.values() if abort and each.model == model]
        for item in running:
            item.sink.give_back()

    def reinstate(self, model: str) -> None:
        """Take jobs of a model again, which has been loaded anew."""
        with self._lock:
            self._retired.pop(model, None)
            self._num_begun[model] = 0

    def num_begun(self, model: str) -> int:
        """Count the jobs of a model that were begun since it was reinstated."""
        return self._num_begun[model]

    def num_running(self, model: str) -> int:
        """Count the jobs of a model that run here, and the claims that may be of it."""
        with self._lock:
            running = sum(each.model == model for each in self._running.values())
            return running + sum(model in models for models in self._claiming.values())

    def _claim(self, job_id: str, models: frozenset[str]) -> ClaimedJob | None:
        statement = jobs.claim_job(job_id, self._context.owner, self._context.lease, models)
        with self._context.claims.begin() as connection:
            return statement.fetch_optional(connection)

    def _run(self, job: ClaimedJob, served: ServedModel) -> None:
        origin, source = Origin.from_json(job.origin_json), chat_queue(job.model)
        taken: Attributes = {
            names.MESSAGING_DESTINATION: source,
            names.MESSAGE_ID: job.id,
            names.JOB: job.id,
            names.ATTEMPT: job.attempt,
        }
        with tracing.work(f"process {source}", origin, attributes=taken, job=job.id) as span:
            self._run_in(span, job, served, tracing.origin_of(span, origin))

    def _run_in(self, span: Span | None, job: ClaimedJob, served: ServedModel, origin: Origin) -> None:
        """Run a claimed job inside the span of its work."""
        job_id = job.id
        running = self._prepare(job, served, origin)
        with self._lock:
            self._running[job_id] = running
            self._claiming.pop(job_id, None)
            self._num_begun[job.model] += 1
            is_retired = self._retired.get(job.model, False)
        if is_retired:  # while it was being claimed
            running.sink.give_back()
        try:
            outcome = self._outcome(job, running)
            if span is not None:
                _end_spans(span, running, outcome)
            self._record(job, served, running, outcome)
        except SQLAlchemyError as error:  # the lease runs out, and another worker takes the job
            log.error("end_not_recorded", job=job_id, reason=type(error).__name__)
        finally:
            with self._lock:
                del self._running[job_id]
            self._context.leases.drop(running.lease)

    def _prepare(self, job: ClaimedJob, served: ServedModel, origin: Origin) -> _RunningJob:
        """Parse the body and build the engine call, without starting it."""
        job_id = job.id
        body = parse_json(job.body.encode())
        adapter, header = read_accepted(job.endpoint, body, served.model), served.header(job_id)
        inference = start_inference(served.model, job.endpoint, body, origin, job_id)
        asked_by = RequestOrigin(
            job_id=job_id,
            tenant=job.tenant_id,
            priority=Priority.CHAT,
            trace=tracing.origin_of(inference, origin),
        )
        sink = JobSink(job_id, job.fence, adapter.stream_encoder(header), self._context.publisher.publish)
        requests, quarantine_view = adapter.engine_requests(served.model, asked_by), self._read_quarantine(job)
        if quarantine_view.is_suspect(body):
            requests = [as_exclusive(request) for request in requests]
        return _RunningJob(
            model=job.model,
            body=body,
            adapter=adapter,
            header=header,
            lease=self._context.leases.hold(job_id, job.model, job.fence, lambda: self._lease_changed(job_id)),
            call=EngineCall(served.engine, requests, sink),
            sink=sink,
            quarantine=quarantine_view,
            inference=inference,
            begun_at=time.monotonic(),
        )

    def _read_quarantine(self, job: ClaimedJob) -> QuarantineView:
        """The quarantine of this tenant and model. It is nearly always empty, which the claim has checked already."""
        scope = {"tenant_id": job.tenant_id, "model": job.model, "endpoint": job.endpoint}
        if not job.has_quarantined:
            return QuarantineView(**scope, entries={})
        with self._context.database.begin() as connection:
            return read_quarantine(connection, **scope, kept=self._quarantine_time)

    @property
    def _quarantine_time(self) -> timedelta:
        return timedelta(hours=self._context.settings.quarantine_hours)

    def _outcome(self, job: ClaimedJob, running: _RunningJob) -> EngineOutcome | GiveBack:
        """Start the engine call, and wait for its end."""
        if (refused := running.adapter.refusal(job.id)) is not None:
            return refused
        if running.quarantine.is_blocked(running.body):
            return blocked_failure(job.id, self._context.settings.quarantine_hours)
        running.call.start()
        if running.lease.is_unwanted:  # since before the call had anything to cancel
            running.call.cancel()
        return running.sink.outcomes.get()

    def _lease_changed(self, job_id: str) -> None:
        with self._lock:
            running = self._running.get(job_id)
        if running is None:
            return
        running.call.cancel()
        if running.lease.is_lost:
            running.sink.outcomes.put(GiveBack())

    def _record(
        self, job: ClaimedJob, served: ServedModel, running: _RunningJob, outcome: EngineOutcome | GiveBack
    ) -> None:
        sink = running.sink
        match outcome:
            case GiveBack():
                running.call.cancel()
                self._requeue(job)
            case Finished(reason=FinishReason.CANCELLED):
                log.info("job_cancelled")
                if self._end(job, running, JobState.CANCELLED, jobs.end_cancelled_job(job.id, job.fence)):
                    sink.send_end(EventKind.CANCELLED)
            case Finished() | Embedded():
                if self._complete(job, served, running, outcome):
                    sink.send_done(outcome)
                    _log_completed(job, running, outcome)
            case Failed():
                self._fail(job, running, running.adapter.to_problem(outcome))
            case EngineLost(was_running=False) if not sink.has_sent_frames:
                self._requeue(job)
            case EngineLost():
                self._fail(job, running, engine_crash(), *self._crash_statements(job, running, outcome))

    def _crash_statements(self, job: ClaimedJob, running: _RunningJob, lost: EngineLost) -> list[Executable]:
        """Quarantine the request: the next equal one runs alone.

        A request that has crashed the engine alone as often as a batch line may is blocked.
        """
        if not lost.was_running:
            return []
        entry = running.quarantine.entry(running.body, job.id)
        most = max(1, self._context.settings.line_attempts - 1)
        return [quarantine.record_crash(entry, crashes=int(lost.was_alone), most=most, kept=self._quarantine_time)]

    def _complete(self, job: ClaimedJob, served: ServedModel, running: _RunningJob, result: EngineResult) -> bool:
        model, usage = served.model.name, result.usage
        statement = jobs.complete_job(
            job.id,
            job.fence,
            answer=running.adapter.encode_response(running.header, result),
            tokens=(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens),
            provenance=served.provenance,
            is_cut=isinstance(result, Finished) and result.reason in _CUT,
        )
        more: list[Executable] = []
        if running.quarantine.is_suspect(running.body):
            more.append(quarantine.clear(running.quarantine.entry(running.body, job.id).fingerprint))
        if running.adapter.is_metered:
            more.append(
                jobs.add_usage(
                    job.tenant_id,
                    model,
                    key=job.key_id or "",
                    requests=1,
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    cached_tokens=usage.cached_tokens,
                )
            )
        seconds = time.monotonic() - running.begun_at
        if not self._end(job, running, JobState.COMPLETED, statement, *more):
            return False
        metrics = self._context.metrics
        metrics.add_latency(model, seconds, result)
        if running.adapter.is_metered:
            metrics.add_usage(job.tenant_id, model, requests=1, **msgspec.structs.asdict(usage))
        return True

    def _fail(self, job: ClaimedJob, running: _RunningJob, problem: Problem, *more: Executable) -> None:
        log.info("job_failed", job=job.id, code=problem.code)
        statement = jobs.fail_job(job.id, job.fence, problem.to_json())
        if self._end(job, running, JobState.FAILED, statement, *more, code=problem.code):
            running.sink.send_end(EventKind.FAILED, problem)

    def _end(
        self,
        job: ClaimedJob,
        running: _RunningJob,
        state: JobState,
        statement: Query[EndedJob],
        *more: Executable,
        code: str | None = None,
    ) -> bool:
        """Write how the job ended together with `more`, with retries; `code` is that of its error. False: the job is no longer
        held here.
        """
        is_answer = state is JobState.COMPLETED
        committing = Point.CHAT_COMPLETING if is_answer else Point.CHAT_ENDING
        committed = Point.CHAT_COMPLETED if is_answer else Point.CHAT_ENDED

        def write() -> bool:
            with self._context.database.begin(committing=committing, committed=committed) as connection:
                ended = statement.fetch_optional(connection)
                if ended is None:  # lost, or an earlier try committed and its reply got lost
                    return connection.execute(jobs.has_ended(job.id, job.fence, state)).scalar_one()
                for each in more:
                    connection.execute(each)
            if ended.has_events:  # webhook events were recorded, which a clerk sends
                self._context.tickets.deliver(ended.id)
            return True

        is_ended = retry_write(write, lambda: not running.lease.is_lost)
        if is_ended:
            self._context.metrics.add_end(job.model, state, code)
            self._context.counters.add(_COUNTERS[state], job.model)
        return is_ended

    def _requeue(self, job: ClaimedJob) -> None:
        """Queue the job again for another worker; without a row another one already has it."""
        log.info("job_released", model=job.model)

        def write() -> bool:
            with self._context.database.begin() as connection:
                return jobs.release_job(job.id, job.fence).fetch_optional(connection) is not None

        if retry_write(write, lambda: True):
            failpoint(Point.CHAT_RELEASED)
            self._context.tickets.run_chat(job.id, job.model)


def _end_spans(span: Span, running: _RunningJob, outcome: EngineOutcome | GiveBack) -> None:
    """End the span of the call, and mark that of the work, which goes on until the outcome is stored."""
    ended = None if isinstance(outcome, GiveBack) else outcome
    first_at = running.sink.first_delta_at
    if running.inference is not None:
        end_inference(running.inference, ended, None if first_at is None else first_at - running.begun_at)
    if (error := error_type_of(ended)) is not None:
        span.fail(error)


def _log_completed(job: ClaimedJob, running: _RunningJob, result: EngineResult) -> None:
    log.info(
        "job_completed",
        model=job.model,
        attempt=job.attempt,
        ms=round(1000 * (time.monotonic() - running.begun_at)),
        prompt_tokens=result.usage.prompt_tokens,
        completion_tokens=result.usage.completion_tokens,
    )
