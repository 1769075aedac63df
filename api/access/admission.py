"""Admission: raise a 429 for work that exceeds the caller's rates, queue or streams, or its tenant's open batches.

The bytes that a tenant may store are limited in `api.access.quotas`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.dependencies import from_app
from api.services.key_ring import Caller
from api.services.rate_limiter import Level, Rate, RateLimiter, duration, too_many
from core.api_keys import estimated_tokens
from core.errors import ApiError
from core.schemas.endpoints import ENDPOINTS
from core.settings import Settings
from db import keys

_GENERATING: Final = frozenset({*ENDPOINTS, "/v1/jobs"})
_RETRY_SECONDS: Final = 20.0  # a guess: a batch or a stream has to end first


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Counts calls, batches and tokens against the limits of a key or address."""

    settings: Settings
    database: AsyncEngine
    limiter: RateLimiter

    async def charge_call(self, request: Request, caller: Caller) -> None:
        """Count a call once, as a request if it generates something, else as one of all other calls; or raise the 429.

        Without a key, only calls that the settings limit are counted, by address. A key without limits costs no round trip.
        """
        is_generating = (
            request.method == "POST" and request.scope["path"] in _GENERATING
        )  # `url` trusts the Host header
        rate = _request_rate(caller) if is_generating else self._call_rate(request, caller)
        if rate is not None:
            await self._charge(request, rate, 1)

    async def charge_batch(self, request: Request, caller: Caller) -> None:
        """Count a batch that a key of the tenant is about to create, or raise the 429."""
        limit = self.settings.batches_per_hour
        if limit and caller.key_id is not None:
            rate = Rate(owner=f"tenant:{caller.tenant}", kind="batches", limit=limit, per="hour")
            await self._charge(request, rate, 1)

    async def admit(self, request: Request, caller: Caller, *, num_bytes: int, num_answer_tokens: int) -> None:
        """Admit a generation, or raise the 429. `num_bytes` is the size of its body, `num_answer_tokens` the most it may
        answer, 0 if unknown."""
        tokens = estimated_tokens(num_bytes)
        await self._check_queue(caller, tokens)
        limit = caller.limits.tokens_per_minute
        if limit is not None and caller.key_id is not None:
            rate = Rate(owner=caller.key_id, kind="tokens", limit=limit)
            await self._charge(request, rate, tokens + num_answer_tokens)

    async def _check_queue(self, caller: Caller, tokens: int) -> None:
        limit, key_id = caller.limits.queued_tokens, caller.key_id
        if limit is None or key_id is None:
            return
        async with self.database.connect() as connection:
            in_batches = (await connection.execute(keys.queued_in_batches(caller.tenant, key_id))).scalar_one()
            in_jobs = estimated_tokens((await connection.execute(keys.queued_in_jobs(key_id))).scalar_one())
        used = in_batches + in_jobs
        if used + tokens > limit:
            message = (
                f"Enqueued token limit reached: limit {limit}, used {used}, requested {tokens}. Please try again later."
            )
            raise too_many("tokens", message, _RETRY_SECONDS, is_worth_a_retry=tokens <= limit)

    def _call_rate(self, request: Request, caller: Caller) -> Rate | None:
        if caller.key_id is not None:
            owner, limit = caller.key_id, caller.limits.calls_per_minute or self.settings.calls_per_minute
        else:
            peer = request.client.host if request.client else "unknown"
            owner, limit = f"address:{peer}", self.settings.keyless_calls_per_minute
        return Rate(owner=owner, kind="calls", limit=limit) if limit else None

    async def _charge(self, request: Request, rate: Rate, cost: int) -> None:
        level = await self.limiter.take(rate, cost)
        _add_headers(request, rate.kind, level)
        if level.is_taken:
            return
        what, limit = f"{rate.kind} per {rate.per}", rate.limit
        if cost > limit:
            message = f"Request too large on {what}: limit {limit}, requested {cost}. It must be made smaller."
            raise too_many(rate.kind, message, 0, is_worth_a_retry=False)
        message = (
            f"Rate limit reached on {what}: limit {limit}, remaining {level.remaining}, requested {cost}. "
            f"Please try again in {duration(level.retry_seconds)}."
        )
        raise too_many(rate.kind, message, level.retry_seconds)


AdmissionDep = Annotated[Admission, from_app("admission")]


async def check_open_batches(connection: AsyncConnection, tenant: str) -> None:
    """Reserve room for another batch of the tenant until the transaction ends, or raise the 429."""
    used = await keys.open_batches(tenant).async_fetch_optional(connection)
    if used is None or used.max_batches is None:
        return
    await connection.execute(keys.lock_quota(tenant))
    used = await keys.open_batches(tenant).async_fetch_one(connection)
    if used.max_batches is not None and used.batches >= used.max_batches:
        message = f"{used.batches} batches have not ended, and {used.max_batches} may be open at a time."
        raise too_many("batches", message, _RETRY_SECONDS)


def no_free_stream(limit: int | None) -> ApiError:
    """The 429 of a key that has all its streams open."""
    return too_many("streams", f"This key may have {limit} streams open at a time.", _RETRY_SECONDS)


def _request_rate(caller: Caller) -> Rate | None:
    limit = caller.limits.requests_per_minute
    return Rate(owner=caller.key_id, kind="requests", limit=limit) if limit and caller.key_id is not None else None


def _add_headers(request: Request, kind: str, level: Level) -> None:
    set_header(request, f"x-ratelimit-limit-{kind}", str(level.limit))
    set_header(request, f"x-ratelimit-remaining-{kind}", str(level.remaining))
    set_header(request, f"x-ratelimit-reset-{kind}", duration(level.reset_seconds))


def set_header(request: Request, name: str, value: str | None) -> None:
    """Set or remove a header of the response, which `api.middleware` adds to any answer."""
    headers = {**getattr(request.state, "response_headers", {})}
    headers.pop(name, None)
    request.state.response_headers = headers if value is None else {**headers, name: value}
