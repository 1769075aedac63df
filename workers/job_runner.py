"""One job that is not a line of a batch: claim, ask the engine, publish what it says, record how it ended.

The engine's deltas become frames in the client's I/O thread; the thread of the Celery task only waits for the end.
Answers are committed before the end is published, so whoever sees `done` finds the row.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Executable, Row, RowMapping
from sqlalchemy.exc import SQLAlchemyError

from core.errors import Problem
from core.failpoints import Point, failpoint
from core.queue.events import EventKind
from core.states import JobState
from core.strict_json import parse_json
from db import jobs, quarantine
from engine.process.client import EngineLost
from engine.types import Delta, Embedded, Failed, Finished, FinishReason, Priority
from workers.context import ServedModel, WorkerContext
from workers.generation.chat_response import engine_crash
from workers.generation.endpoints.base import (
    EndpointAdapter,
    EngineOutcome,
    EngineResult,
    RequestOrigin,
    ResponseHeader,
    StreamEncoder,
)
from workers.generation.endpoints.registry import read_adapter
from workers.generation.engine_call import EngineCall
from workers.generation.job_stream import JobStream
from workers.generation.quarantine import JsonObject, QuarantineView, as_exclusive, blocked_failure, read_quarantine
from workers.runtime.db_retry import retry_write
from workers.runtime.leases import Lease

log = structlog.get_logger()


class _GiveBack:
    """The job's lease is gone or the worker leaves: nothing may be recorded."""


class JobSink(JobStream):
    """The sink of one request: frames go out as deltas come in; the end is handed to the waiting thread."""

    def __init__(self, job: RowMapping, frames: StreamEncoder | None, context: WorkerContext) -> None:
        attempt: int = job["fence"]  # rises with every claim, also when an attempt was given back
        super().__init__(job["id"], attempt, frames, context.publisher.publish)
        self.ended: queue.SimpleQueue[EngineOutcome | _GiveBack] = queue.SimpleQueue()

    def on_delta(self, delta: Delta) -> None:
        """Called in the client's I/O thread."""
        self.more(delta)

    def on_end(self, outcome: EngineOutcome) -> None:
        """Called in the client's I/O thread, once."""
        self.ended.put(outcome)

    @property
    def has_begun(self) -> bool:
        """Has somebody seen a part of it?"""
        return self._seq > 0


@dataclass(slots=True)
class _Running:
    body: JsonObject
    exchange: EndpointAdapter
    head: ResponseHeader
    lease: Lease
    asking: EngineCall
    answer: JobSink
    accusation: QuarantineView


class JobRunner:
    """Runs jobs of any endpoint, one per calling thread."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        self._is_draining = False

    def run(self, job_id: str) -> None:
        """Take the job if it is still free, and see it to its end."""
        if self._is_draining or job_id in self._running:  # one that lost its lease here is not asked for twice
            return
        try:
            job = self._claim(job_id)
        except SQLAlchemyError as error:  # the sweeper sends another ticket
            log.warning("claim_failed", job=job_id, reason=type(error).__name__)
            return
        if job is None:
            return
        failpoint(Point.CHAT_CLAIMED)
        served = self._context.served(job["model"])
        if served is None:
            self._give_back(job)
            return
        self._run(job, served)

    def cancel(self, job_id: str) -> None:
        """Stop a job if it runs here; its slot is free within a step."""
        with self._lock:
            running = self._running.get(job_id)
        if running is not None:
            running.asking.cancel()

    def drain(self, abort: bool = False) -> None:
        """Take no more jobs; with `abort`, give the running ones back unfinished."""
        self._is_draining = True
        with self._lock:
            running = list(self._running.values()) if abort else []
        for item in running:
            item.answer.ended.put(_GiveBack())

    def is_idle(self) -> bool:
        """Does no job run here?"""
        return not self._running

    def _claim(self, job_id: str) -> RowMapping | None:
        statement = jobs.claim_job(job_id, self._context.owner, self._context.lease)
        with self._context.claims.begin() as connection:
            row: RowMapping | None = connection.execute(statement).mappings().one_or_none()
            return row

    def _run(self, job: RowMapping, served: ServedModel) -> None:
        job_id: str = job["id"]
        running = self._start(job, served)
        with self._lock:
            self._running[job_id] = running
        try:
            self._record(job, served, running, self._outcome(job, running))
        except SQLAlchemyError as error:  # the lease runs out, and somebody else takes the job
            log.error("end_not_recorded", job=job_id, reason=type(error).__name__)
        finally:
            with self._lock:
                del self._running[job_id]
            self._context.leases.drop(running.lease)

    def _start(self, job: RowMapping, served: ServedModel) -> _Running:
        """Everything there is to know of a job before its engine is asked."""
        job_id: str = job["id"]
        body = parse_json(job["body"].encode())
        exchange, head = read_adapter(job["endpoint"], body), served.head(job_id)
        asker = RequestOrigin(job_id=job_id, tenant=job["tenant_id"], priority=Priority.CHAT)
        answer = JobSink(job, exchange.frames(head), self._context)
        asks, accusation = exchange.engine_requests(served.model, asker), self._accusation(job)
        if accusation.is_suspect(body):
            asks = [as_exclusive(ask) for ask in asks]
        return _Running(
            body=body,
            exchange=exchange,
            head=head,
            lease=self._context.leases.hold(job_id, job["model"], job["fence"], lambda: self._lease_changed(job_id)),
            asking=EngineCall(served.engine, asks, answer),
            answer=answer,
            accusation=accusation,
        )

    def _accusation(self, job: RowMapping) -> QuarantineView:
        """What is known against this tenant's requests; nearly always nothing, as the claim has told."""
        asked = {"tenant_id": job["tenant_id"], "model": job["model"], "endpoint": job["endpoint"]}
        if not job["has_quarantined"]:
            return QuarantineView(**asked, known={})
        with self._context.database.begin() as connection:
            return read_quarantine(connection, **asked, kept=self._kept)

    @property
    def _kept(self) -> timedelta:
        return timedelta(hours=self._context.settings.quarantine_hours)

    def _outcome(self, job: RowMapping, running: _Running) -> EngineOutcome | _GiveBack:
        """Ask, and wait for the end."""
        if running.accusation.is_blocked(running.body):
            return blocked_failure(job["id"], self._context.settings.quarantine_hours)
        running.asking.begin()
        return running.answer.ended.get()

    def _lease_changed(self, job_id: str) -> None:
        with self._lock:
            running = self._running.get(job_id)
        if running is None:
            return
        running.asking.cancel()
        if running.lease.is_lost:
            running.answer.ended.put(_GiveBack())

    def _record(
        self, job: RowMapping, served: ServedModel, running: _Running, outcome: EngineOutcome | _GiveBack
    ) -> None:
        answer = running.answer
        match outcome:
            case _GiveBack():
                running.asking.cancel()
                self._give_back(job)
            case Finished(reason=FinishReason.CANCELLED):
                if self._end(job, running, JobState.CANCELLED, jobs.end_cancelled_job(job["id"], job["fence"])):
                    answer.end(EventKind.CANCELLED)
            case Finished() | Embedded():
                if self._complete(job, served, running, outcome):
                    answer.close(outcome)
            case Failed():
                self._fail(job, running, running.exchange.problem(outcome))
            case EngineLost(was_running=False) if not answer.has_begun:
                self._give_back(job)
            case EngineLost():
                self._fail(job, running, engine_crash(), *self._accuse(job, running, outcome))

    def _accuse(self, job: RowMapping, running: _Running, lost: EngineLost) -> list[Executable]:
        """The next one like it will run alone; one that crashed the engine alone as often as a line may is refused."""
        if not lost.was_running:
            return []
        accused = running.accusation.entry(running.body, job["id"])
        most = max(1, self._context.settings.line_attempts - 1)
        return [quarantine.record_crash(accused, crashes=int(lost.was_alone), most=most, kept=self._kept)]

    def _complete(self, job: RowMapping, served: ServedModel, running: _Running, outcome: EngineResult) -> bool:
        model, usage = served.model.name, outcome.usage
        statement = jobs.complete_job(
            job["id"],
            job["fence"],
            answer=running.exchange.answer(running.head, outcome),
            tokens=(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens),
            made_by=served.made_by,
            is_cut=isinstance(outcome, Finished) and outcome.reason is FinishReason.LENGTH,
        )
        more: list[Executable] = []
        if running.accusation.is_suspect(running.body):
            more.append(quarantine.clear(running.accusation.entry(running.body, job["id"]).fingerprint))
        more.append(
            jobs.add_usage(
                job["tenant_id"],
                model,
                key=job["key_id"] or "",
                requests=1,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
            )
        )
        return self._end(job, running, JobState.COMPLETED, statement, *more)

    def _fail(self, job: RowMapping, running: _Running, problem: Problem, *more: Executable) -> None:
        log.info("job_failed", job=job["id"], code=problem.code)
        statement = jobs.fail_job(job["id"], job["fence"], problem.to_json())
        if self._end(job, running, JobState.FAILED, statement, *more):
            running.answer.end(EventKind.FAILED, problem)

    def _end(
        self,
        job: RowMapping,
        running: _Running,
        state: JobState,
        statement: Any,  # Any: as `db.response_events.telling` has it
        *more: Executable,
    ) -> bool:
        """Write how the job ended, and what goes with it, however often that takes. False: it is not ours any more."""
        is_answer = state is JobState.COMPLETED

        def write() -> bool:
            with self._context.database.begin() as connection:
                ended = connection.execute(statement).one_or_none()
                if ended is None:  # or this was written before, and the reply got lost
                    return bool(connection.execute(jobs.has_ended(job["id"], job["fence"], state)).scalar_one())
                for each in more:
                    connection.execute(each)
                failpoint(Point.CHAT_COMPLETING if is_answer else Point.CHAT_ENDING)
            failpoint(Point.CHAT_COMPLETED if is_answer else Point.CHAT_ENDED)
            self._wake_clerk(ended)
            return True

        return retry_write(write, lambda: not running.lease.is_lost)

    def _wake_clerk(self, ended: Row[Any]) -> None:  # Any: the columns of `db.response_events.telling`
        """A webhook may want to know."""
        if ended.is_told:
            self._context.tickets.deliver(ended.id)

    def _give_back(self, job: RowMapping) -> None:
        """Queue it again for another worker; no row means that somebody has it already."""

        def write() -> bool:
            with self._context.database.begin() as connection:
                return connection.execute(jobs.release_job(job["id"], job["fence"])).one_or_none() is not None

        if retry_write(write, lambda: True):
            failpoint(Point.CHAT_RELEASED)
            self._context.tickets.run_chat(job["id"], job["model"])
