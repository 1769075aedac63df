"""Sweep: find what a lost ticket, a dead worker or the clock left behind, and set it going again.

Every statement is idempotent and conditional, so two clerks that sweep at once do no harm; an advisory lock keeps it to one.
It is held by a transaction that waits for the sweep, so the database takes it from a clerk that froze with it, in the time that
`db.connections` lets a transaction be idle. A clerk whose sweep takes longer than that goes on without it.

What waits gets another ticket. Where the broker takes none, or none has been heard for long, a clerk does its own part of the
work without.
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

from core.errors import SERVER_ERROR, Problem
from core.failpoints import Point, failpoint
from core.queue.events import Event, EventKind
from core.states import BatchState
from db import batches, jobs, quarantine, shards, validations
from workers.batches.finalize import finalize
from workers.batches.prepare import prepare
from workers.context import ClerkContext
from workers.maintenance.retention import Retention
from workers.validation.task import answer_validation

log = structlog.get_logger()

_LOCK: Final = 727_002
_PAGE: Final = 500
_UNHEARD_TICKETS: Final = 4  # with so many sent in vain, the consumers are busy or deaf
_CRASHES_KEPT: Final = timedelta(days=1)


class Sweeper:
    """Sweeps every `sweep_seconds` until closed. `do_here` takes a name and work that needs no ticket."""

    def __init__(
        self,
        context: ClerkContext,
        do_here: Callable[[str, Callable[[], None]], None] = lambda _, work: work(),
    ) -> None:
        self._context = context
        self._do_here = do_here
        self._retention = Retention(context)
        self.worked_at: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin, with a sweep at once: a restarted stack resumes what was running."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the sweep in progress."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.sweep()
                self.worked_at = time.monotonic()
            except (SQLAlchemyError, OSError) as error:
                log.warning("sweep_failed", reason=type(error).__name__)
            except Exception as error:  # the edge of this thread: the next sweep is due all the same
                log.error("sweep_failed", exc_info=error)
            self._stop.wait(self._context.settings.sweep_seconds)

    def sweep(self) -> None:
        """Once. Nothing is done when another clerk is at it."""
        with self._context.database.begin() as connection:
            if not connection.execute(select(func.pg_try_advisory_xact_lock(_LOCK))).scalar_one():
                return
            self._sweep_batches()
            self._sweep_validations()
            self._sweep_shards()
            self._sweep_jobs()
            self._sweep_quarantine()
            self._retention.sweep()

    def _sweep_batches(self) -> None:
        """Windows that are over; tickets of the clerk that got lost."""
        context = self._context
        with context.database.begin() as connection:
            expired = list(connection.execute(batches.expire_batches()).scalars())
        age = timedelta(seconds=context.settings.ticket_seconds)
        with context.database.begin() as connection:
            waiting = batches.batches_due(age, _UNHEARD_TICKETS * age, _PAGE).fetch_all(connection)
            for batch_id, status, _ in waiting:
                if status == BatchState.IN_PROGRESS:
                    batches.begin_finalizing(batch_id).fetch_optional(connection)
            connection.execute(batches.mark_batches_dispatched([batch_id for batch_id, _, _ in waiting]))
        for batch_id, status, is_unheard in waiting:
            failpoint(Point.SWEEP_BATCHES)
            is_new = status == BatchState.VALIDATING
            send, work = (context.tickets.prepare, prepare) if is_new else (context.tickets.finalize, finalize)
            if not send(batch_id) or is_unheard:
                self._do_here(batch_id, partial(work, context, batch_id))
        if expired or waiting:
            log.info("swept_batches", expired=len(expired), waiting=len(waiting))

    def _sweep_validations(self) -> None:
        """Answer validations whose ticket was lost, in this process."""
        age = timedelta(seconds=self._context.settings.ticket_seconds)
        with self._context.database.begin() as connection:
            unheard = list(connection.execute(validations.unclaimed(age, _PAGE)).scalars())
        for validation_id in unheard:
            self._do_here(validation_id, partial(answer_validation, self._context, validation_id))

    def _sweep_shards(self) -> None:
        """Models that have shards to take: one ticket each, which costs a worker that is busy with them nothing."""
        with self._context.database.begin() as connection:
            models = list(connection.execute(shards.models_with_claimable_shards()).scalars())
        for model in models:
            failpoint(Point.SWEEP_SHARDS)
            self._context.tickets.run_shards(model)

    def _sweep_quarantine(self) -> None:
        """Requests that have been refused for long enough; deaths that nobody counts any more."""
        with self._context.database.begin() as connection:
            connection.execute(quarantine.delete_old_entries(timedelta(hours=self._context.settings.quarantine_hours)))
            connection.execute(quarantine.delete_engine_crashes(_CRASHES_KEPT))

    def _sweep_jobs(self) -> None:
        """Chat jobs whose worker died, or whose ticket got lost."""
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
        if told := [row.id for row in (*cancelled, *failed) if row.has_events]:
            context.tickets.deliver(told[0])
        for job_id, model in [*again, *overdue]:
            failpoint(Point.SWEEP_JOBS)
            context.tickets.run_chat(job_id, model)
        if cancelled or failed or again or overdue:
            log.info("swept_jobs", failed=len(failed), again=len(again), overdue=len(overdue))


_WORKER_LOST: Final = Problem(
    status=500,
    message="The workers that ran this request died. Send it again; if it fails again, the request may be the cause.",
    type=SERVER_ERROR,
    code="worker_lost",
)
