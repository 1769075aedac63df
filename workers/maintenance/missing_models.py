"""Missing models: end the lines and jobs of a model without files, after a grace.

The files may be away for minutes, as while they are replaced, so a model must be missing in every sweep of that time. The time
is counted by this process; a clerk that starts begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from core.errors import Problem
from core.readiness import ModelState, ModelStatus, model_state
from db import missing_models, workers
from workers.context import ClerkContext
from workers.runtime.failed_jobs import announce_failures

log = structlog.get_logger()


class MissingModels:
    """Finds models that work waits for and that no worker can serve again without a change of files."""

    def __init__(self, context: ClerkContext, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._clock = clock
        self._missing_since: dict[str, float] = {}

    def sweep(self) -> None:
        """Fail the work of each model that has been missing for `missing_model_seconds`."""
        now, missing = self._clock(), self._find()
        self._missing_since = {name: self._missing_since.get(name, now) for name in missing}
        for name, since in self._missing_since.items():
            if now - since >= self._context.settings.missing_model_seconds:
                self._fail(missing[name])

    def forget(self) -> None:
        """Begin to count anew: nothing waits for any model."""
        self._missing_since = {}

    def _find(self) -> dict[str, ModelState]:
        context = self._context
        with context.database.begin() as connection:
            names = list(connection.execute(missing_models.models_with_waiting_work()).scalars())
            seen = workers.list_workers().fetch_all(connection) if names else []
        silence_seconds, listed = context.settings.silence_seconds, context.catalog.names()
        states = [model_state(seen, name, silence_seconds, listed=listed) for name in names]
        return {state.model: state for state in states if state.status is ModelStatus.MISSING}

    def _fail(self, state: ModelState) -> None:
        problem = _gone(state)
        with self._context.database.begin() as connection:
            shards = list(connection.execute(missing_models.close_shards(state.model)).scalars())
            connection.execute(missing_models.fail_lines(shards, problem.to_json()))
            failed = missing_models.fail_jobs(state.model, problem.to_json()).fetch_all(connection)
        announce_failures(failed, problem, self._context.publisher.publish, self._context.tickets)
        log.error("missing_model_failed", model=state.model, shards=len(shards), jobs=len(failed))


def _gone(state: ModelState) -> Problem:
    reason = state.reason.removesuffix(".")
    message = (
        f"The model '{state.model}' is gone: {reason}. Use another model, or put its files back and retry the batch."
    )
    return Problem(status=404, message=message, code="model_not_found", param="model")
