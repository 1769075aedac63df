"""What an api process is built from, once, and how endpoints name what they need of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncEngine

from api.http.local_only import check_local
from api.services.key_ring import Caller, KeyRing, not_allowed
from api.services.metrics import Metrics
from api.services.rate_limiter import Rate, RateLimiter, too_many
from api.services.relay import Relay
from api.services.service_metrics import ServiceMetrics
from api.services.stream_limiter import StreamSlots
from api.services.waiters import Waiters
from core.api_keys import Scope
from core.errors import ApiError
from core.file_store import FileStore
from core.model_files import ModelCatalog
from core.queue.tickets import Tickets
from core.settings import Settings, is_loopback

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
            self.tickets.back_off()
            return False

    def close(self) -> None:
        """Do not wait for a frozen broker."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppState:
    """Everything that lives as long as the process. `async_commit` is a pool with `async_commit` of `db.connections`.

    `leaving` is set when the process was told to stop: what is cut off from then on was not given up by its client.
    """

    settings: Settings
    database: AsyncEngine
    async_commit: AsyncEngine
    catalog: ModelCatalog
    files: FileStore
    relay: Relay
    keys: KeyRing
    limiter: RateLimiter
    streams: StreamSlots
    sender: TicketSender
    metrics: Metrics
    fleet: ServiceMetrics
    started_at: int
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    readers: Waiters = field(default_factory=Waiters)


async def get_state(request: Request) -> AppState:
    """The process's state."""
    state = request.app.state.millrace
    assert isinstance(state, AppState)
    return state


StateDep = Annotated[AppState, Depends(get_state)]
_bearer = HTTPBearer(
    auto_error=False, description="A key of `millrace keys create`; none is needed while there are none."
)


async def get_caller(
    request: Request, state: StateDep, given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Caller:
    """Who sent this request; raises 401, and 403 without a key from elsewhere than this machine."""
    peer = request.client.host if request.client else None
    try:
        caller = await state.keys.identify(given.credentials if given else None, peer)
    except ApiError:
        await _count_refusal(state, peer)
        raise
    if caller.key_id is None and not state.settings.open_without_keys:
        check_local(request)
    request.state.caller = caller
    return caller


async def _count_refusal(state: AppState, peer: str | None) -> None:
    """Whoever tries keys from elsewhere is told to wait: 429. Valid keys of the same address are not touched by it."""
    if peer is None or is_loopback(peer):
        return
    rate = Rate(owner=f"address:{peer}", kind="refusals", limit=state.settings.refusals_per_minute)
    level = await state.limiter.take(rate, 1)
    if not level.is_taken:
        raise too_many("requests", "Too many requests of this address had no valid key.", level.retry_seconds)


CallerDep = Annotated[Caller, Depends(get_caller)]


async def get_tenant(request: Request, caller: CallerDep) -> str:
    """Whose request this is; every route asks here and nowhere else. One that declares no scope needs ADMIN: 403."""
    if not getattr(request.state, "is_allowed", False) and Scope.ADMIN not in caller.scopes:
        raise not_allowed(())
    return caller.tenant


def caller_of(request: Request) -> Caller:
    """The caller, for what lies below a route; only once the route has asked for its tenant."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


def is_reading(request: Request) -> bool:
    """Does it change nothing?"""
    return request.method in ("GET", "HEAD")


TenantDep = Annotated[str, Depends(get_tenant)]
