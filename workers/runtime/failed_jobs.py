"""Failed jobs: announces the end of jobs that failed without a worker, after the commit of their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.errors import Problem
from core.queue.events import Event, EventKind
from core.queue.tickets import Tickets
from db.response_events import EndedJob


def announce_failures(
    ended: Sequence[EndedJob], problem: Problem, publish: Callable[[Event], None], tickets: Tickets
) -> None:
    """Publish the end of each job to its readers, and let a clerk send webhook events about them."""
    for job in ended:
        publish(Event(job=job.id, attempt=job.fence, seq=0, kind=EventKind.FAILED, problem=problem))
    if with_events := [job.id for job in ended if job.has_events]:
        tickets.deliver(with_events[0])
