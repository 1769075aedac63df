"""Admission: does a caller have room for what it asks? Its rates, its queue, its streams; its tenant's batches. (What a tenant
may store is `api.access.quotas`.)

Knows callers and limits; the 429s are made here. Whoever makes a job asks `visible_models` for the model and then `admit`.
"""

from __future__ import annotations

from typing import Final

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection

from api.dependencies import AppState
from api.services.key_ring import Caller
from api.services.rate_limiter import Level, Rate, duration, too_many
from core.api_keys import estimated_tokens
from core.errors import ApiError, not_found
from core.model_files import ModelCatalog, ModelConfig
from core.schemas.endpoints import ENDPOINTS
from db import keys

_ASKING: Final = frozenset({*ENDPOINTS, "/v1/jobs"})
_RETRY_SECONDS: Final = 20.0  # when it is not known how long: a batch or a stream has to end first


def visible_models(state: AppState, caller: Caller) -> ModelCatalog:
    """The models this caller may know of."""
    return state.catalog.only(caller.models)


def find_model(state: AppState, caller: Caller, name: str) -> ModelConfig:
    """The model a request asks for, or the 404 that unknown and forbidden ones share."""
    models = visible_models(state, caller)
    model = models.get(name)
    if model is None:
        served = ", ".join(models.names()) or "none"
        message = f"The model '{name}' does not exist here. Served models: {served}."
        raise not_found(message, code="model_not_found", param="model")
    return model


async def charge_call(request: Request, state: AppState, caller: Caller) -> None:
    """Count a call, once: as a request if it asks a model, else as one of all other calls; or raise the 429.

    Without a key, only what the settings limit is counted, by address. A question of a key without a limit waits for nothing.
    """
    is_asking = request.method == "POST" and request.scope["path"] in _ASKING  # `url` believes the Host header
    rate = _request_rate(caller) if is_asking else _call_rate(request, state, caller)
    if rate is not None:
        await _charge(request, state, rate, 1)


async def charge_batch(request: Request, state: AppState, caller: Caller) -> None:
    """Count a batch that is about to be created with a key of the tenant, or raise the 429."""
    limit = state.settings.batches_per_hour
    if limit and caller.key_id is not None:
        rate = Rate(owner=f"tenant:{caller.tenant}", kind="batches", limit=limit, per="hour")
        await _charge(request, state, rate, 1)


async def admit(request: Request, state: AppState, caller: Caller, *, num_bytes: int, num_answer_tokens: int) -> None:
    """Let a generation in, or raise the 429. `num_bytes`: its body; `num_answer_tokens`: the most it may answer, 0 if unsaid."""
    tokens = estimated_tokens(num_bytes)
    await _check_queue(state, caller, tokens)
    limit = caller.limits.tokens_per_minute
    if limit is not None and caller.key_id is not None:
        await _charge(request, state, Rate(owner=caller.key_id, kind="tokens", limit=limit), tokens + num_answer_tokens)


async def check_open_batches(connection: AsyncConnection, tenant: str) -> None:
    """Room for another batch of the tenant, which is ours until the transaction ends; or the 429."""
    used = await keys.open_batches(tenant).async_fetch_optional(connection)
    if used is None or used.max_batches is None:
        return
    await connection.execute(keys.lock_quota(tenant))
    used = await keys.open_batches(tenant).async_fetch_one(connection)
    if used.max_batches is not None and used.batches >= used.max_batches:
        message = f"{used.batches} batches have not ended, and {used.max_batches} may be open at a time."
        raise too_many("batches", message, _RETRY_SECONDS)


def no_free_stream(limit: int | None) -> ApiError:
    """The 429 of a key with all its streams open."""
    return too_many("streams", f"This key may have {limit} streams open at a time.", _RETRY_SECONDS)


async def _check_queue(state: AppState, caller: Caller, tokens: int) -> None:
    limit, key_id = caller.limits.queued_tokens, caller.key_id
    if limit is None or key_id is None:
        return
    async with state.database.connect() as connection:
        in_batches = (await connection.execute(keys.queued_in_batches(caller.tenant, key_id))).scalar_one()
        in_jobs = estimated_tokens((await connection.execute(keys.queued_in_jobs(key_id))).scalar_one())
    if in_batches + in_jobs + tokens > limit:
        used = in_batches + in_jobs
        message = (
            f"Enqueued token limit reached: limit {limit}, used {used}, requested {tokens}. Please try again later."
        )
        raise too_many("tokens", message, _RETRY_SECONDS, is_worth_a_retry=tokens <= limit)


def _request_rate(caller: Caller) -> Rate | None:
    limit = caller.limits.requests_per_minute
    return Rate(owner=caller.key_id, kind="requests", limit=limit) if limit and caller.key_id is not None else None


def _call_rate(request: Request, state: AppState, caller: Caller) -> Rate | None:
    if caller.key_id is not None:
        owner, limit = caller.key_id, caller.limits.calls_per_minute or state.settings.calls_per_minute
    else:
        peer = request.client.host if request.client else "unknown"
        owner, limit = f"address:{peer}", state.settings.keyless_calls_per_minute
    return Rate(owner=owner, kind="calls", limit=limit) if limit else None


async def _charge(request: Request, state: AppState, rate: Rate, cost: int) -> None:
    level = await state.limiter.take(rate, cost)
    _tell(request, rate.kind, level)
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


def _tell(request: Request, kind: str, level: Level) -> None:
    """Sent with whatever is answered, see `api.middleware`."""
    request.state.answer_headers = {
        **getattr(request.state, "answer_headers", {}),
        f"x-ratelimit-limit-{kind}": str(level.limit),
        f"x-ratelimit-remaining-{kind}": str(level.remaining),
        f"x-ratelimit-reset-{kind}": duration(level.reset_seconds),
    }
