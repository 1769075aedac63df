"""Sweeper: finds work with a lost ticket, a lost worker or an expired deadline, and starts or ends it.

A sweep first finds out, in one statement, which of its parts have anything to do; at rest, none has.

Every statement is idempotent and conditional, so two clerks that sweep at once do no harm; an advisory lock keeps it to one.
The lock belongs to a transaction that stays open during the sweep. If a clerk freezes, the database ends that transaction after
the time that `db.connections` lets it be idle. A clerk whose sweep takes longer than that goes on without the lock.

Waiting work gets another ticket. If the broker takes no tickets, or no ticket has been answered for long, the clerk does its
own kind of work without one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Final

import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from core.counters import CounterName
from core.errors import SERVER_ERROR, Problem
from core.failpoints import Point, failpoint
from core.queue.events import Event, EventKind
from core.states import BatchState
from db import batches, demand, jobs, quarantine, shards, sweeps, validations
from workers.batches.finalize import finalize
from workers.batches.prepare import prepare
from workers.context import ClerkContext
from workers.maintenance.history import History
from workers.maintenance.missing_models import MissingModels
from workers.maintenance.retention import Retention
from workers.runtime.clerk_metrics import SWEEP_SECONDS
from workers.validation.task import answer_validation

log = structlog.get_logger()

_LOCK: Final = 727_002
_PAGE: Final = 500
_UNANSWERED_TICKETS: Final = 4  # after so many, the consumers are busy or receive none
_CRASHES_KEPT: Final = timedelta(days=1)


class Sweeper:
    """Sweeps every `sweep_seconds` until closed. `run_here` gets a key and work to do in this process, without a ticket."""

    def __init__(
        self,
        context: ClerkContext,
        run_here: Callable[[str, Callable[[], None]], None] = lambda _, work: work(),
    ) -> None:
        self._context = context
        self._run_here = run_here
        self._retention = Retention(context)
        self._history = History(context)
        self._missing_models = MissingModels(context)
        settings = context.settings
        self._due_parts = sweeps.due_parts(
            ticket_age=timedelta(seconds=settings.ticket_seconds),
            idempotency_age=timedelta(hours=settings.idempotency_hours),
            quarantine_age=timedelta(hours=settings.quarantine_hours),
            crash_age=_CRASHES_KEPT,
            file_age=timedelta(days=settings.file_days),
        )
        self.swept_at: float | None = None
        self.began_at: float | None = None  # of the sweep in progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Start the thread, which sweeps at once: a restarted stack resumes what was running."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the sweep in progress."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.began_at = time.monotonic()
            try:
                began = time.monotonic()
                self.sweep()
                self.swept_at = time.monotonic()
                self._context.recorder.observe(SWEEP_SECONDS, (), self.swept_at - began)
            except (SQLAlchemyError, OSError) as error:
                log.warning("sweep_failed", reason=type(error).__name__)
            except Exception as error:  # the edge of this thread: the next sweep must come
                log.error("sweep_failed", exc_info=error)
            self.began_at = None
            self._stop.wait(self._context.settings.sweep_seconds)

    def sweep(self) -> None:
        """Sweep once; does nothing while another clerk sweeps."""
        with self._context.database.autocommit() as connection:
            due = self._due_parts.fetch_one(connection)
        if not due.models:
            self._missing_models.forget()
        if not any(due) and not self._history.is_due:
            self._retention.sweep(has_rows=False)
            return
        with self._context.database.begin() as connection:
            if connection.execute(select(func.pg_try_advisory_xact_lock(_LOCK))).scalar_one():
                self._sweep_parts(due)

    def _sweep_parts(self, due: sweeps.DueParts) -> None:
        if due.batches:
            self._sweep_batches()
        if due.validations:
            self._sweep_validations()
        if due.models:
            self._sweep_shards()
        if due.jobs:
            self._sweep_jobs()
        if due.models:
            self._missing_models.sweep()
        if due.quarantine:
            self._sweep_quarantine()
        self._retention.sweep(has_rows=due.rows)
        self._history.sweep()

    def _sweep_batches(self) -> None:
        """Expire batches whose window is over, and send lost tickets of the clerk again."""
        context = self._context
        with context.database.begin() as connection:
            expired = list(connection.execute(batches.expire_batches()).scalars())
        age = timedelta(seconds=context.settings.ticket_seconds)
        with context.database.begin() as connection:
            waiting = batches.batches_due(age, _UNANSWERED_TICKETS * age, _PAGE).fetch_all(connection)
            for batch_id, status, _ in waiting:
                if status == BatchState.IN_PROGRESS:
                    batches.begin_finalizing(batch_id).fetch_optional(connection)
            connection.execute(batches.mark_batches_dispatched([batch_id for batch_id, _, _ in waiting]))
        for batch_id, status, is_unanswered in waiting:
            failpoint(Point.SWEEP_BATCHES)
            is_new = status == BatchState.VALIDATING
            send, work = (context.tickets.prepare, prepare) if is_new else (context.tickets.finalize, finalize)
            if not send(batch_id) or is_unanswered:
                self._run_here(batch_id, partial(work, context, batch_id))
        self._context.counters.add(CounterName.TICKETS_RESENT, number=len(waiting))
        if expired or waiting:
            log.info("swept_batches", expired=len(expired), waiting=len(waiting))

    def _sweep_validations(self) -> None:
        """Answer validations whose ticket was lost, in this process."""
        age = timedelta(seconds=self._context.settings.ticket_seconds)
        with self._context.database.begin() as connection:
            overdue = list(connection.execute(validations.unclaimed(age, _PAGE)).scalars())
        for validation_id in overdue:
            self._run_here(validation_id, partial(answer_validation, self._context, validation_id))

    def _sweep_shards(self) -> None:
        """Send a ticket for each model with claimable shards; a worker that is busy with them ignores it at no cost.

        A model that is not in memory needs none: its worker looks for shards once it is loaded.
        """
        silence = timedelta(seconds=self._context.settings.silence_seconds)
        with self._context.database.begin() as connection:
            models = set(connection.execute(shards.models_with_claimable_shards()).scalars())
            absent = set(connection.execute(demand.models_out_of_memory(silence)).scalars()) if models else set()
        for model in sorted(models - absent):
            failpoint(Point.SWEEP_SHARDS)
            self._context.tickets.run_shards(model)

    def _sweep_quarantine(self) -> None:
        """Delete quarantine entries and engine crashes that are past their time."""
        with self._context.database.begin() as connection:
            connection.execute(quarantine.delete_old_entries(timedelta(hours=self._context.settings.quarantine_hours)))
            connection.execute(quarantine.delete_engine_crashes(_CRASHES_KEPT))

    def _sweep_jobs(self) -> None:
        """End or requeue jobs whose worker is lost, and send lost tickets again."""
        context, settings = self._context, self._context.settings
        with context.database.begin() as connection:
            cancelled = jobs.cancel_lost_jobs().fetch_all(connection)
            failed = jobs.fail_lost_jobs(settings.job_attempts, _WORKER_LOST.to_json()).fetch_all(connection)
            again = jobs.requeue_lost_jobs(settings.job_attempts).fetch_all(connection)
            age = timedelta(seconds=settings.ticket_seconds)
            overdue = jobs.overdue_jobs(context.catalog.names(), age, _PAGE).fetch_all(connection)
            connection.execute(jobs.mark_jobs_dispatched([job_id for job_id, _ in overdue]))
        for job_id, fence, _ in cancelled:
            context.publisher.publish(Event(job=job_id, attempt=fence, seq=0, kind=EventKind.CANCELLED))
        for job_id, fence, _ in failed:
            event = Event(job=job_id, attempt=fence, seq=0, kind=EventKind.FAILED, problem=_WORKER_LOST)
            context.publisher.publish(event)
        if with_webhook_events := [row.id for row in (*cancelled, *failed) if row.has_events]:
            context.tickets.deliver(with_webhook_events[0])
        for job_id, model in [*again, *overdue]:
            failpoint(Point.SWEEP_JOBS)
            context.tickets.run_chat(job_id, model)
        context.counters.add(CounterName.TICKETS_RESENT, number=len(overdue))
        if cancelled or failed or again or overdue:
            log.info("swept_jobs", failed=len(failed), again=len(again), overdue=len(overdue))


_WORKER_LOST: Final = Problem(
    status=500,
    message="The workers that ran this request were lost. Send it again; if it fails again, the request may be the cause.",
    type=SERVER_ERROR,
    code="worker_lost",
)
