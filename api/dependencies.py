"""Dependencies that endpoints name: services of the process, the caller and its tenant.

The app puts each service into `app.state` under one name, and an alias reads it. Aliases of services that use others are declared
beside their class (`api.access.admission`, `api.live.job_client`, `api.live.live_job`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncEngine

from api.http.cors import origins_of
from api.http.local_only import check_local
from api.services.activity import ActivityReader
from api.services.key_ring import Caller, KeyRing, not_allowed
from api.services.metrics import Metrics
from api.services.model_states import ModelStates
from api.services.rate_limiter import Rate, RateLimiter, too_many
from api.services.relay import Relay
from api.services.service_metrics import ServiceMetrics
from api.services.ticket_sender import TicketSender
from api.services.waiters import Waiters
from core.api_keys import Scope
from core.errors import ApiError
from core.files.file_store import FileStore
from core.models.live_catalog import LiveCatalog
from core.models.model_files import ModelCatalog
from core.settings import Settings, is_loopback


def from_app(name: str) -> Any:  # Any: FastAPI's own type of a dependency
    """A dependency on `app.state.<name>`."""

    async def get(request: Request) -> Any:  # Any: the alias names the type
        return getattr(request.app.state, name)

    return Depends(get)


async def _current_models(request: Request) -> ModelCatalog:
    live: LiveCatalog = request.app.state.live_catalog
    return live.current


SettingsDep = Annotated[Settings, from_app("settings")]
DatabaseDep = Annotated[AsyncEngine, from_app("database")]
LiveCatalogDep = Annotated[LiveCatalog, from_app("live_catalog")]
CatalogDep = Annotated[ModelCatalog, Depends(_current_models)]  # does not change during a request
FilesDep = Annotated[FileStore, from_app("files")]
RelayDep = Annotated[Relay, from_app("relay")]
WaitersDep = Annotated[Waiters, from_app("waiters")]
ModelStatesDep = Annotated[ModelStates, from_app("model_states")]
TicketsDep = Annotated[TicketSender, from_app("tickets")]
MetricsDep = Annotated[Metrics, from_app("metrics")]
ActivityDep = Annotated[ActivityReader, from_app("activity")]
ServiceMetricsDep = Annotated[ServiceMetrics, from_app("service_metrics")]
KeyRingDep = Annotated[KeyRing, from_app("key_ring")]
StartedAtDep = Annotated[int, from_app("started_at")]  # unix seconds

_bearer = HTTPBearer(
    auto_error=False, description="A key of `millrace keys create`; none is needed while there are none."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticator:
    """Finds the caller of a request, and limits how often an address may send invalid keys."""

    settings: Settings
    keys: KeyRing
    limiter: RateLimiter

    async def authenticate(self, request: Request, key: str | None) -> Caller:
        """The caller; raises 401, and 403 for a request without a key from another machine."""
        peer = request.client.host if request.client else None
        try:
            caller = await self.keys.identify(key, peer)
        except ApiError:
            await self._count_refusal(peer)
            raise
        if caller.key_id is None and not self.settings.open_without_keys:
            check_local(request, origins_of(self.settings.cors_origins) - {"*"})
        return caller

    async def _count_refusal(self, peer: str | None) -> None:
        """Raise 429 for a remote address that keeps sending invalid keys; its requests with a valid key are not affected."""
        if peer is None or is_loopback(peer):
            return
        rate = Rate(owner=f"address:{peer}", kind="refusals", limit=self.settings.refusals_per_minute)
        level = await self.limiter.take(rate, 1)
        if not level.is_taken:
            raise too_many("requests", "Too many requests of this address had no valid key.", level.retry_seconds)


async def get_caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Caller:
    """The caller of a request."""
    authenticator: Authenticator = request.app.state.authenticator
    caller = await authenticator.authenticate(request, credentials.credentials if credentials else None)
    request.state.caller = caller  # for the access log
    return caller


CallerDep = Annotated[Caller, Depends(get_caller)]


async def get_tenant(request: Request, caller: CallerDep) -> str:
    """The tenant of a request. A route that declares no scope requires ADMIN: 403 without it."""
    if not getattr(request.state, "is_allowed", False) and Scope.ADMIN not in caller.scopes:
        raise not_allowed(())
    return caller.tenant


TenantDep = Annotated[str, Depends(get_tenant)]
