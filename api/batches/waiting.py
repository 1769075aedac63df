"""Batches that cannot go on: the reason, and for a model that is not in memory, when it will be."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from api.batches.estimates import recent_work
from api.batches.model_turns import Forecast, ModelWork, forecast
from api.services.model_states import ModelStates, ServiceState
from core.readiness import ModelState, ModelStatus
from core.schemas.objects import BatchObject
from core.states import BatchState
from db import batches, model_loads
from db.batches import BatchRow

_CLERKS_WORK: Final = (BatchState.VALIDATING, BatchState.FINALIZING, BatchState.CANCELLING)


@dataclass(frozen=True, slots=True)
class Wait:
    """The reasons for which a batch does not go on. `model`: it only waits for this model to be in memory."""

    reason: str
    model: str | None = None
    forecast: Forecast | None = None


async def waits_of(connection: AsyncConnection, rows: list[BatchRow], states: ModelStates) -> dict[str, Wait]:
    """The waits of batches that have not ended, by their ids; none for those that go on."""
    service = await states.read(connection)
    clerk = service.clerk().message
    waits = {row.id: Wait(f"a clerk: {clerk}") for row in rows if clerk and row.status in _CLERKS_WORK}
    running = [row.id for row in rows if row.status is BatchState.IN_PROGRESS and row.paused_at is None]
    models: dict[str, list[ModelState]] = {}
    for batch_id, name in await batches.open_models(running).async_fetch_all(connection) if running else []:
        models.setdefault(batch_id, []).append(service.model(name))
    works: list[ModelWork] | None = None
    for batch_id, needed in models.items():
        stopped = [state for state in needed if state.reason and not state.is_serving]
        if not stopped:
            continue
        reason = "; ".join(f"model {state.model}: {_reason(state)}" for state in stopped)
        if len(stopped) < len(needed) or not all(state.is_available for state in stopped):
            waits[batch_id] = Wait(reason)
            continue
        if works is None:
            works = await _open_works(connection, service)
        waits[batch_id] = Wait(reason, ", ".join(state.model for state in stopped), _forecast(works, stopped, service))
    return waits


def with_wait(batch: BatchObject, wait: Wait | None, now: float | None = None) -> BatchObject:
    """The object with its wait; its end then contains the load of its model and the turns of others before it.

    Where no batch of the model was completed yet, the pace of this one so far is used for the time after the load.
    """
    if wait is None:
        return batch
    changes: dict[str, object] = {"waiting_for": wait.reason}
    if wait.forecast is not None:
        ready, end = (_moment(seconds, now) for seconds in (wait.forecast.ready_seconds, wait.forecast.end_seconds))
        if end is None and batch.eta_at is not None and wait.forecast.ready_seconds is not None:
            end = batch.eta_at + round(wait.forecast.ready_seconds)
        misses = None if end is None or batch.expires_at is None else end > batch.expires_at
        changes |= {
            "waiting_for_model": wait.model,
            "model_ready_at": ready,
            "eta_at": end,
            "will_miss_window": misses,
        }
    return batch.model_copy(update=changes)


def _moment(seconds: float | None, now: float | None) -> int | None:
    return None if seconds is None else int((time.time() if now is None else now) + seconds)


def _reason(state: ModelState) -> str:
    return "it waits for its turn in memory" if state.status is ModelStatus.UNLOADED else state.reason


async def _open_works(connection: AsyncConnection, service: ServiceState) -> list[ModelWork]:
    """The work of batches for each model, and the models in memory without any; the longest waiting one first."""
    open_work = await batches.open_work().async_fetch_all(connection)
    names = [each.model for each in open_work]
    loads = dict(await model_loads.load_times(names).async_fetch_all(connection)) if names else {}
    works = []
    for each in open_work:
        recent, state = await recent_work(connection, each.model), service.model(each.model)
        works.append(
            ModelWork(
                name=each.model,
                work_seconds=each.lines * recent.seconds / recent.lines if recent.lines else None,
                load_seconds=loads.get(each.model, 0.0),
                is_resident=state.is_serving,
                is_loading=state.status is ModelStatus.LOADING,
                priority=each.priority,
            )
        )
    idle = (state.model for state in service.models() if state.is_serving and state.model not in names)
    return [*works, *(ModelWork(name=name, work_seconds=0.0, is_resident=True) for name in idle)]


def _forecast(works: Sequence[ModelWork], needed: list[ModelState], service: ServiceState) -> Forecast:
    """The forecast for a batch that needs these models: until the first is in memory, and until the last has ended."""
    turn_seconds = service.settings.batch_patience_seconds
    found = [forecast(works, state.model, turn_seconds) for state in needed]
    ready = min((each.ready_seconds for each in found if each.ready_seconds is not None), default=None)
    ends = [each.end_seconds for each in found if each.end_seconds is not None]
    return Forecast(ready, max(ends) if len(ends) == len(found) else None)
