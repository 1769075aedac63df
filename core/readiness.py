"""Rules of readiness: from the rows of worker processes to the state of each model and of the clerk.

A model is ready when a chat and a batch worker of it have lately polled for work and received ticks of its engine's loop.
Both are proofs of work, so a process that runs but does nothing does not count. The launcher of an engine reports whether it
loads, and the reason why it does not start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from core.errors import SERVER_ERROR, Problem
from core.logs import device_log, engine_log
from core.memory_sizes import format_bytes
from core.states import EngineState

_CONSUMERS: Final = ("chat", "batch")
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_NO_FILE: Final = "no file in models_dir describes it"
_STOPPED: Final = (EngineState.FAILED, EngineState.MISSING)
_TOO_LARGE: Final = re.compile(r"it needs [\d.]+ \w+ of memory, and \S+ has [\d.]+ \w+ for models.*")
_DOWN: Final = (*_STOPPED, EngineState.UNLOADED)


def too_large(need_bytes: int, device: str, room_bytes: int, remark: str = "") -> str:
    """The reason of a launcher for a model that never fits into the memory of its device."""
    need, room = format_bytes(need_bytes), format_bytes(max(0, room_bytes))
    return f"it needs {need} of memory, and {device} has {room} for models{remark}"


class ModelStatus(StrEnum):
    """The status of a model in `/v1/models`.

    DEGRADED serves, and its engine crashes repeatedly. UNLOADED is not in memory, and loads at the first request. FAILED and
    MISSING: its engine does not start, the latter since a file is not there. UNSERVED: no worker has it, or its workers are
    silent. UNKNOWN: the workers' reports cannot be read.
    """

    READY = "ready"
    DEGRADED = "degraded"
    LOADING = "loading"
    UNLOADED = "unloaded"
    FAILED = "failed"
    MISSING = "missing"
    UNSERVED = "unserved"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """The state of a model; `reason` is empty for a model that is ready, `advice` is the operator's remedy.

    `warning` is the engine's remark on a model that it serves all the same. With `is_on_demand`, the model is loading because
    a request needs it; else because its worker starts, or its engine does after a crash. With `is_too_large`, no device has the
    memory for it.
    """

    model: str
    status: ModelStatus
    reason: str = ""
    advice: str = ""
    warning: str | None = None
    is_on_demand: bool = False
    is_too_large: bool = False

    @property
    def is_serving(self) -> bool:
        """Are requests for it answered?"""
        return self.status in (ModelStatus.READY, ModelStatus.DEGRADED)

    @property
    def is_available(self) -> bool:
        """Is a request for it answered, if only after its model has loaded?"""
        return self.is_serving or self.status is ModelStatus.UNLOADED or self.is_on_demand

    @property
    def is_down(self) -> bool:
        """Does nothing answer its requests at this moment, or for long?"""
        return self.is_stopped or self.status is ModelStatus.UNSERVED

    @property
    def is_stopped(self) -> bool:
        """Does its engine not start, whatever a request waits for?"""
        return self.status in (ModelStatus.FAILED, ModelStatus.MISSING)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlace:
    """The engines of a model that are in memory, as their launchers report them; None: not reported, or no such engine.

    `slots` and `memory_bytes` are sums over the engines; `context_size` is the smallest, in tokens of a sequence. `settings_json`
    are the settings of one engine.
    """

    devices: tuple[str, ...] = ()
    slots: int | None = None
    memory_bytes: int | None = None
    context_size: int | None = None
    settings_json: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """The check of one component; it is ready when the message is empty."""

    name: str
    message: str = ""
    advice: str = ""


class WorkerSeen(NamedTuple):
    """A worker process and one of its engines, as read; durations count back from now. A clerk has no model.

    Only a launcher reports the fields from `state` on; its `poll_seconds` is None until its eager models have loaded.
    """

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
    state: EngineState | None = None
    warning: str | None = None
    device: str | None = None
    memory_bytes: int | None = None
    slots: int | None = None
    context_size: int | None = None
    settings_json: str | None = None
    num_running: int | None = None
    num_waiting: int | None = None
    num_embeddings: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_per_second: float | None = None
    output_tokens_per_second: float | None = None
    kv_tokens: int | None = None
    kv_reusable_tokens: int | None = None
    kv_total_tokens: int | None = None


def not_ready(state: ModelState) -> Problem:
    """The problem of a request for a model that does not answer."""
    reason = state.reason.removesuffix(".")
    message = f"The model '{state.model}' is not ready: {reason}. {state.advice}".rstrip()
    return Problem(status=503, message=message, type=SERVER_ERROR, code="model_not_ready", param="model")


def check_workers(
    seen: Sequence[WorkerSeen], models: Sequence[str], silence_seconds: float, degraded: Mapping[str, str] = _NONE
) -> list[Check]:
    """Check the clerk and each model. `degraded`: models with an engine that crashes repeatedly, and the reason."""
    states = [model_state(seen, name, silence_seconds, degraded) for name in models]
    return [check_clerk(seen, silence_seconds), *(check_model(state) for state in states)]


def check_clerk(seen: Sequence[WorkerSeen], silence_seconds: float) -> Check:
    """Check that a clerk looks for work."""
    clerks = [worker for worker in seen if worker.kind == "clerk"]
    if not clerks:
        return Check("clerk", "there is none", "Start one: millrace clerk. Batches wait for it, chats do not.")
    if any(not _defect(clerk, silence_seconds) for clerk in clerks):
        return Check("clerk")
    return Check("clerk", _defect(clerks[0], silence_seconds), "Look at its log (clerk.log), and start it again.")


def check_model(state: ModelState) -> Check:
    """The check of a model in this state; one that loads when a request needs it passes."""
    name = f"model {state.model}"
    return Check(name) if state.is_available and not state.is_serving else Check(name, state.reason, state.advice)


def model_state(
    seen: Sequence[WorkerSeen],
    name: str,
    silence_seconds: float,
    degraded: Mapping[str, str] = _NONE,
    *,
    listed: Sequence[str] | None = None,
) -> ModelState:
    """Derive the state of a model. `listed`: the names that have a model file; a model without one is MISSING unless a worker
    still serves it.
    """
    seen = [worker for worker in seen if worker.model == name]
    launchers = [worker for worker in seen if worker.kind == "launcher" and worker.state is not None]
    alive = [launcher for launcher in launchers if launcher.seen_seconds <= silence_seconds]
    stopped = [launcher for launcher in launchers if launcher.state in _STOPPED]
    warning = next((launcher.warning for launcher in launchers if launcher.warning), None)
    defect = _defect_of_consumers(name, seen, silence_seconds)
    is_down = bool(alive) and all(launcher.state in _DOWN for launcher in alive)
    if not defect.message and not is_down:
        if name not in degraded:
            return ModelState(model=name, status=ModelStatus.READY, warning=warning)
        reason, advice = f"is degraded: {degraded[name]}", f"Look at {_engine_log(name, launchers)} on the worker."
        return ModelState(model=name, status=ModelStatus.DEGRADED, reason=reason, advice=advice, warning=warning)
    if listed is not None and name not in listed:
        advice = "Put its file back, or wait until its requests fail."
        return ModelState(model=name, status=ModelStatus.MISSING, reason=_NO_FILE, advice=advice)
    if loading := [launcher for launcher in alive if launcher.state is EngineState.LOADING]:
        return ModelState(
            model=name,
            status=ModelStatus.LOADING,
            reason="its engine is loading",
            advice=f"Wait, or look at {_engine_log(name, loading)} on the worker.",
            warning=warning,
            is_on_demand=any(each.poll_seconds is not None and each.exit_reason is None for each in loading),
        )
    if any(launcher.state is EngineState.UNLOADED for launcher in alive):
        reason = "it is not in memory, and loads when a request needs it"
        return ModelState(model=name, status=ModelStatus.UNLOADED, reason=reason, warning=warning)
    if stopped and all(_TOO_LARGE.fullmatch(launcher.exit_reason or "") for launcher in stopped):
        return ModelState(
            model=name,
            status=ModelStatus.FAILED,
            reason=stopped[0].exit_reason or "",
            advice="Raise device_memory, unpin other models, or give it fewer slots or a smaller context.",
            is_too_large=True,
        )
    if stopped:
        is_missing = all(launcher.state is EngineState.MISSING for launcher in stopped)
        return ModelState(
            model=name,
            status=ModelStatus.MISSING if is_missing else ModelStatus.FAILED,
            reason=f"its engine does not start: {stopped[0].exit_reason or 'look at its log'}",
            advice=f"Correct the model's files. If no worker runs, start one: millrace worker --models {name}",
        )
    return ModelState(
        model=name, status=ModelStatus.UNSERVED, reason=defect.message, advice=defect.advice, warning=warning
    )


def model_place(seen: Sequence[WorkerSeen], name: str, silence_seconds: float) -> ModelPlace:
    """Derive the devices and the size of a model from the reports of launchers that are alive."""
    alive = [each for each in seen if each.model == name and each.seen_seconds <= silence_seconds]
    engines = [each for each in alive if each.device is not None]
    slots, sizes, contexts = (
        [number for number in numbers if number is not None]
        for numbers in (
            [each.slots for each in engines],
            [each.memory_bytes for each in engines],
            [each.context_size for each in engines],
        )
    )
    return ModelPlace(
        devices=tuple(sorted({each.device for each in engines if each.device is not None})),
        slots=sum(slots) or None,
        memory_bytes=sum(sizes) if sizes else None,
        context_size=min(contexts, default=None),
        settings_json=next((each.settings_json for each in engines if each.settings_json is not None), None),
    )


def _defect_of_consumers(name: str, seen: Sequence[WorkerSeen], silence_seconds: float) -> Check:
    for kind in _CONSUMERS:
        consumers = [worker for worker in seen if worker.kind == kind]
        if not consumers:
            return Check(name, f"no {kind} worker serves it", f"Start one: millrace worker --models {name}")
        if all(_defect(worker, silence_seconds) for worker in consumers):
            launchers = [worker for worker in seen if worker.kind == "launcher"]
            logs = f"{device_log(kind, _device(launchers))}, {_engine_log(name, launchers)}"
            advice = f"Look at the worker's logs ({logs})."
            return Check(name, _defect(consumers[0], silence_seconds), advice)
    return Check(name)


def _engine_log(model: str, launchers: Sequence[WorkerSeen]) -> str:
    return engine_log(model, _device(launchers))


def _device(launchers: Sequence[WorkerSeen]) -> str | None:
    """The device of the first launcher that reports one: logs are named after it."""
    return next((launcher.device for launcher in launchers if launcher.device), None)


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
