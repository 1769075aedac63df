"""What an api process is built from, once, and how endpoints name what they need of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Final

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine

from api.metrics import Metrics
from api.relay import Relay
from core.files import FileStore
from core.models import ModelCatalog
from core.settings import Settings
from core.tickets import Tickets
from db.tables import DEFAULT_TENANT

_TICKET_SECONDS: Final = 2.0


class TicketSender:
    """Sends tickets from the event loop: in a thread, with a hard deadline, since a frozen broker must not hang a request."""

    def __init__(self, tickets: Tickets) -> None:
        self.tickets = tickets
        self._threads = ThreadPoolExecutor(8, "tickets")

    async def send(self, action: Callable[[], bool]) -> bool:
        """Did the broker take it in time? If not, the sweeper sends it later."""
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._threads, action), _TICKET_SECONDS)
        except TimeoutError:
            return False

    def close(self) -> None:
        """Do not wait for a frozen broker."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiState:
    """Everything that lives as long as the process. `relaxed` is a pool of `db.sessions`' second kind.

    `leaving` is set when the process was told to stop: what is cut off from then on was not given up by its client.
    """

    settings: Settings
    database: AsyncEngine
    relaxed: AsyncEngine
    catalog: ModelCatalog
    files: FileStore
    relay: Relay
    sender: TicketSender
    metrics: Metrics
    started_at: int
    leaving: asyncio.Event = field(default_factory=asyncio.Event)


def get_state(request: Request) -> ApiState:
    """The process's state."""
    state = request.app.state.millrace
    assert isinstance(state, ApiState)
    return state


def get_tenant() -> str:
    """Whose request this is. One tenant until there are keys; every route asks here and nowhere else."""
    return DEFAULT_TENANT


StateDep = Annotated[ApiState, Depends(get_state)]
TenantDep = Annotated[str, Depends(get_tenant)]
