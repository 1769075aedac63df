"""`GET /v1/batches/events`: the batches of the tenant as they change, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import Response

from api.access.scopes import require_scopes
from api.batches.feed import BatchFeeds
from api.dependencies import CallerDep, SettingsDep, TenantDep, WaitersDep, from_app
from api.http.event_stream import EventStream
from api.http.openapi import response_docs
from api.http.sse import PING, error_event
from api.services.waiters import WaitEnded, Waiters
from core.api_keys import Scope

router = APIRouter(tags=["batch events"], dependencies=[require_scopes(Scope.INFERENCE)])

BatchFeedsDep = Annotated[BatchFeeds, from_app("batch_feeds")]


@router.get("/v1/batches/events", response_class=Response, responses=response_docs(streams=True))
async def get_batches_events(
    feeds: BatchFeedsDep, waiters: WaitersDep, settings: SettingsDep, tenant: TenantDep, caller: CallerDep
) -> Response:
    """An event `batch` with the whole batch for each one that has not ended, and then for each one that is created or changed."""
    return EventStream(batch_changes(feeds, waiters, tenant, caller.key_id, settings.keep_alive_seconds))


async def batch_changes(
    feeds: BatchFeeds, waiters: Waiters, tenant: str, key_id: str | None, keep_alive_seconds: float
) -> AsyncIterator[bytes]:
    """Yield until the wait is ended by a shutdown or a revoked key, or the feed fails."""
    with waiters.open(key_id) as waiter, feeds.subscribe(tenant, waiter.wake) as subscription:
        yield PING
        try:
            while subscription.failure is None:
                if events := subscription.take():
                    yield events
                    waiter.check()
                    continue
                try:
                    await waiter.wait(keep_alive_seconds)
                except TimeoutError:
                    yield PING
            yield error_event(subscription.failure)
        except WaitEnded as ended:
            yield error_event(ended.problem)
