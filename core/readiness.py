"""Rules of readiness: from the rows of worker processes to the state of each model and of the clerk.

A model is ready when a chat and a batch worker of it have lately polled for work and received ticks of its engine's loop.
Both are proofs of work, so a process that runs but does nothing does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from core.logs import engine_log

_CONSUMERS: Final = ("chat", "batch")
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Check:
    """The check of one component; it is ready when the message is empty."""

    name: str
    message: str = ""
    advice: str = ""


class WorkerSeen(NamedTuple):
    """A worker process and one of its engines, as read; durations count back from now. A clerk has no model."""

    id: str
    kind: str
    host: str
    pid: int
    started_seconds: float
    seen_seconds: float
    poll_seconds: float | None
    model: str | None
    tick_seconds: float | None
    num_deaths: int | None
    exit_reason: str | None


def check_workers(
    seen: Sequence[WorkerSeen], models: Sequence[str], silence_seconds: float, degraded: Mapping[str, str] = _NONE
) -> list[Check]:
    """Check the clerk and each model. `degraded`: models with an engine that crashes repeatedly, and the reason."""
    clerks = [worker for worker in seen if worker.kind == "clerk"]
    return [
        _clerk(clerks, silence_seconds),
        *(_model(model, [w for w in seen if w.model == model], silence_seconds, degraded) for model in models),
    ]


def _clerk(clerks: Sequence[WorkerSeen], silence_seconds: float) -> Check:
    if not clerks:
        return Check("clerk", "there is none", "Start one: millrace clerk. Batches wait for it, chats do not.")
    if any(not _defect(clerk, silence_seconds) for clerk in clerks):
        return Check("clerk")
    return Check("clerk", _defect(clerks[0], silence_seconds), "Look at its log (clerk.log), and start it again.")


def _model(name: str, seen: Sequence[WorkerSeen], silence_seconds: float, degraded: Mapping[str, str]) -> Check:
    check = f"model {name}"
    reason = next((worker.exit_reason for worker in seen if worker.exit_reason), None)
    for kind in _CONSUMERS:
        workers_of_kind = [worker for worker in seen if worker.kind == kind]
        if not workers_of_kind:
            return Check(check, _with_reason(f"no {kind} worker serves it", reason), _how_to_start(name, reason))
        if all(_defect(worker, silence_seconds) for worker in workers_of_kind):
            message = _defect(workers_of_kind[0], silence_seconds)
            return Check(
                check, _with_reason(message, reason), f"Look at the worker's logs ({kind}.log, {engine_log(name)})."
            )
    if name in degraded:
        return Check(check, f"is degraded: {degraded[name]}", f"Look at {engine_log(name)} on the worker.")
    return Check(check)


def _defect(worker: WorkerSeen, silence_seconds: float) -> str:
    """Return the reason why this process does not count as working; empty when it does."""
    if worker.seen_seconds > silence_seconds:
        return f"its {worker.kind} worker sent its last heartbeat {worker.seen_seconds:.0f} s ago"
    since_poll = worker.started_seconds if worker.poll_seconds is None else worker.poll_seconds
    if since_poll > silence_seconds:
        return f"its {worker.kind} worker has not polled for work for {since_poll:.0f} s"
    if worker.tick_seconds is not None and worker.tick_seconds > silence_seconds:
        return f"its engine's loop has not run for {worker.tick_seconds:.0f} s"
    return ""


def _with_reason(message: str, reason: str | None) -> str:
    return f"{message}; its engine exited: {reason}" if reason else message


def _how_to_start(name: str, reason: str | None) -> str:
    command = f"millrace worker --models {name}"
    return f"Correct the model's files, then start a worker: {command}" if reason else f"Start one: {command}"
