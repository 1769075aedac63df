"""Activity: devices, queues, crashes and quarantine of the whole service, read from the database at most once per second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.services.model_states import ModelStates, ServiceState
from core.readiness import WorkerSeen
from core.states import EngineState
from db import backlog, quarantine, workers
from db.backlog import ModelChats, ModelLines
from db.quarantine import LastCrash
from db.workers import DeviceSeen

_FRESH_SECONDS: Final = 1.0
_IN_MEMORY: Final = (EngineState.LOADING, EngineState.READY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceActivity:
    """The values of one read at `read_at`, in unix seconds; models without chats, lines or crashes are absent there."""

    read_at: float
    silence_seconds: float
    state: ServiceState
    devices: Sequence[DeviceSeen]
    chats: Mapping[str, ModelChats]
    lines: Mapping[str, ModelLines]
    crashes: Mapping[str, LastCrash]
    quarantined: Mapping[tuple[str, bool], int]  # by model and whether it is refused

    def engines(self) -> list[WorkerSeen]:
        """The engines in memory of all launchers that report."""
        return engines_in_memory(self.state.seen or (), self.silence_seconds)


def engines_in_memory(seen: Sequence[WorkerSeen], silence_seconds: float) -> list[WorkerSeen]:
    """The engines that launchers have in memory, of those that have reported within `silence_seconds`."""
    return [
        each
        for each in seen
        if each.kind == "launcher" and each.state in _IN_MEMORY and each.seen_seconds <= silence_seconds
    ]


class ActivityReader:
    """The last values read, whatever the number of readers."""

    def __init__(
        self,
        database: AsyncEngine,
        states: ModelStates,
        silence_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._states = states
        self._silence_seconds = silence_seconds
        self._clock = clock
        self._activity: ServiceActivity | None = None
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    async def read(self) -> ServiceActivity:
        """The values, not older than a second; raises an SQLAlchemyError while the database does not answer."""
        async with self._lock:
            if self._activity is None or self._clock() - self._read_at >= _FRESH_SECONDS:
                async with self._database.connect() as connection:
                    self._activity = await self._read(connection)
                self._read_at = self._clock()
            return self._activity

    async def _read(self, connection: AsyncConnection) -> ServiceActivity:
        chats = await backlog.chats_by_model().async_fetch_all(connection)
        lines = await backlog.lines_by_model().async_fetch_all(connection)
        crashes = await quarantine.last_crashes().async_fetch_all(connection)
        quarantined = await quarantine.count_quarantined().async_fetch_all(connection)
        return ServiceActivity(
            read_at=time.time(),
            silence_seconds=self._silence_seconds,
            state=await self._states.read(connection),
            devices=await workers.list_devices().async_fetch_all(connection),
            chats={row.model: row for row in chats},
            lines={row.model: row for row in lines},
            crashes={row.model: row for row in crashes},
            quarantined={(row.model, row.is_blocked): row.requests for row in quarantined},
        )
