"""Model states: the reports of the workers on each model, read from the database at most once per second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.errors import ApiError
from core.models.live_catalog import LiveCatalog
from core.readiness import (
    Check,
    ModelPlace,
    ModelState,
    ModelStatus,
    WorkerSeen,
    check_clerk,
    model_place,
    model_state,
    not_ready,
)
from core.settings import Settings
from db import model_requests, quarantine, workers

_READ_SECONDS: Final = 1.0
_FRESH_SECONDS: Final = 1.0
_REQUESTED: Final = "an admin has asked to load it, and it waits for its turn"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """The reports of the workers, the models in the catalog, and those that an admin has asked to load, or has pinned.
    `seen` is None before the first read.
    """

    settings: Settings
    listed: list[str]
    seen: Sequence[WorkerSeen] | None = None
    degraded: Mapping[str, str] = field(default_factory=dict)
    requested: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()

    def models(self) -> list[ModelState]:
        """The states of the models in the catalog."""
        return [self.model(name) for name in self.listed]

    def model(self, name: str) -> ModelState:
        """The state of any model."""
        if self.seen is None:
            return ModelState(model=name, status=ModelStatus.UNKNOWN)
        state = model_state(self.seen, name, self.settings.silence_seconds, self.degraded, listed=self.listed)
        if name in self.requested and (state.is_stopped or state.status is ModelStatus.UNLOADED):
            return replace(state, status=ModelStatus.LOADING, reason=_REQUESTED, is_on_demand=True)
        return state

    def place(self, name: str) -> ModelPlace:
        """The engines of any model that are in memory."""
        return model_place(self.seen or (), name, self.settings.silence_seconds)

    def clerk(self) -> Check:
        """The check of the clerk."""
        return Check("clerk") if self.seen is None else check_clerk(self.seen, self.settings.silence_seconds)


async def read_service_state(connection: AsyncConnection, listed: list[str], settings: Settings) -> ServiceState:
    """Read the reports of all workers."""
    seen = await workers.list_workers().async_fetch_all(connection)
    degraded = await degraded_models(connection, settings.engine_crashes)
    wishes = await model_requests.model_wishes().async_fetch_all(connection)
    return ServiceState(
        settings=settings,
        listed=listed,
        seen=seen,
        degraded=degraded,
        requested=frozenset(each.model for each in wishes if each.has_load),
        pinned=frozenset(each.model for each in wishes if each.is_pinned),
    )


async def degraded_models(connection: AsyncConnection, max_crashes: int) -> dict[str, str]:
    """Models with repeated engine crashes that no request explains (name -> message); their engines restart slowly."""
    rows = await quarantine.degraded_models(max_crashes, quarantine.CRASH_WINDOW).async_fetch_all(connection)
    return {row.model: f"its engine ended {row.crashes} times in 10 minutes, no request explains it" for row in rows}


async def _send_nothing(_: str) -> None: ...


class ModelStates:
    """The last states read. While the database does not answer they stay, and nothing is refused because of that.

    `send_wanted` hurries the launchers that may load a model.
    """

    def __init__(
        self,
        database: AsyncEngine,
        catalog: LiveCatalog,
        settings: Settings,
        send_wanted: Callable[[str], Awaitable[None]] = _send_nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._send_wanted = send_wanted
        self._catalog = catalog
        self._state = ServiceState(settings=settings, listed=catalog.current.names())
        self._clock = clock
        self._read_at = float("-inf")
        self._unserved_since: dict[str, float] = {}
        self._lock = asyncio.Lock()

    async def read(self, connection: AsyncConnection | None = None) -> ServiceState:
        """The states, not older than a second while the database answers; read on the caller's `connection` if it has one."""
        if self._is_old() and connection is not None:
            await self._read(connection)
        elif self._is_old():
            async with self._lock:
                if self._is_old():
                    await self._try_read()
        return replace(self._state, listed=self._catalog.current.names())

    async def read_now(self) -> ServiceState:
        """The states as of now, for a caller that has just changed something."""
        self._read_at = float("-inf")
        return await self.read()

    async def check_startable(self, model: str) -> None:
        """Raise the 503 of a model that does not answer: its engine does not start, or no worker has it for long.

        A model that loads, or whose worker restarts, is waited for; with `chats_wait_for_workers` any that no worker has.
        One whose engine does not start is tried again, if it may be.
        """
        state = (await self.read()).model(model)
        if state.is_stopped:
            await self._send_wanted(model)
            raise ApiError(not_ready(state), {"x-should-retry": "false"})
        settings, since = self._state.settings, self._unserved_since.get(model)
        if since is None or settings.chats_wait_for_workers:
            return
        if self._clock() - since >= settings.silence_seconds:
            raise ApiError(not_ready(state))

    async def announce_job(self, model: str) -> None:
        """Hurry the launchers, if the model of a job that was just queued is not in memory."""
        if not self._state.model(model).is_serving:
            await self._send_wanted(model)

    def _is_old(self) -> bool:
        return self._clock() - self._read_at >= _FRESH_SECONDS

    async def _try_read(self) -> None:
        try:
            async with asyncio.timeout(_READ_SECONDS), self._database.connect() as connection:
                await self._read(connection)
        except (SQLAlchemyError, OSError):  # TimeoutError is one
            self._unserved_since.clear()

    async def _read(self, connection: AsyncConnection) -> None:
        now, listed = self._clock(), self._catalog.current.names()
        self._state = await read_service_state(connection, listed, self._state.settings)
        self._read_at = now
        unserved = [state.model for state in self._state.models() if state.status is ModelStatus.UNSERVED]
        self._unserved_since = {name: self._unserved_since.get(name, now) for name in unserved}
