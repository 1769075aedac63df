"""Rate limits per minute or hour, by the generic cell rate algorithm (GCRA), shared by all api processes through Valkey.

A limit refills continuously: a key with 60 requests a minute gets one back each second. The state of a limit is one number, the
time at which it will be full again. While Valkey is down each process keeps that number itself and does the same arithmetic:
limits then hold per process, and no request is refused because of the outage.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.services.redis_client import valkey_client
from core.errors import ApiError, Problem

log = structlog.get_logger()

_WINDOW_SECONDS: Final = {"minute": 60.0, "hour": 3600.0}
_ROUNDING: Final = 1e-6
_TIMEOUT_SECONDS: Final = 0.5
_BACK_OFF_SECONDS: Final = 5.0
_MAX_LOCAL: Final = 10_000
_MAX_RETRY_SECONDS: Final = 120.0  # SDKs give up on a longer wait

# KEYS: the limit. ARGV: now or nothing, seconds in which the cost refills, window. Returns (1 if taken, seconds until full).
# Now is by the clock of Valkey, since those of hosts differ; a stored time more than a window ahead comes from a clock that was
# wrong, and a refused request corrects it too.
_TAKE: Final = """
local now, cost, window = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
    local clock = redis.call('TIME')
    now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
end
local stored = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') - now, 0)
local debt = math.min(stored, window)
local taken = 0
if debt + cost <= window + 0.000001 then
    taken = 1
    debt = debt + cost
end
if taken == 1 or debt < stored then
    redis.call('SET', KEYS[1], string.format('%.6f', now + debt), 'PX', math.ceil(debt * 1000) + 1000)
end
return {taken, string.format('%.6f', debt)}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A limit: its owner (a key, tenant or address), the kind of unit, and the number of units per minute or hour."""

    owner: str
    kind: str
    limit: int
    per: Literal["minute", "hour"] = "minute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """State of a limit after a request for units; `is_taken` is False when they were refused."""

    limit: int
    is_taken: bool
    remaining: int
    reset_seconds: float
    retry_seconds: float


class RateLimiter:
    """Takes units from limits, by the clock of Valkey, or this machine's while Valkey is down. `clock` replaces both."""

    def __init__(self, url: str, key_prefix: str, clock: Callable[[], float] | None = None) -> None:
        retry = Retry(NoBackoff(), 0)
        self.client = valkey_client(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS, retry=retry
        )
        self._take: Any = self.client.register_script(_TAKE)  # Any: redis-py's scripts have no types
        self._prefix = f"{key_prefix}limit:"
        self._clock = clock
        self._local_full_at: dict[str, float] = {}
        self._local_until = 0.0

    async def take(self, rate: Rate, cost: int) -> Level:
        """Take `cost` units or none. A cost above the limit is never taken."""
        window = _WINDOW_SECONDS[rate.per]
        now, cost_seconds = self._clock() if self._clock else time.time(), cost * window / rate.limit
        is_taken, debt = await self._take_seconds(f"{rate.owner}:{rate.kind}", now, cost_seconds, window)
        return Level(
            limit=rate.limit,
            is_taken=is_taken,
            remaining=max(0, math.floor((window - debt) * rate.limit / window + _ROUNDING)),
            reset_seconds=debt,
            retry_seconds=0.0 if is_taken else max(0.0, debt + cost_seconds - window),
        )

    async def close(self) -> None:
        """Close the connections to Valkey."""
        await self.client.aclose()

    async def _take_seconds(self, name: str, now: float, cost_seconds: float, window: float) -> tuple[bool, float]:
        if now < self._local_until:
            return self._take_locally(name, now, cost_seconds, window)
        try:
            given = "" if self._clock is None else now
            taken, debt = await self._take(keys=[self._prefix + name], args=[given, cost_seconds, window])
        except (RedisError, OSError) as error:
            log.warning("rate_limits_local", reason=type(error).__name__)
            self._local_until = now + _BACK_OFF_SECONDS
            return self._take_locally(name, now, cost_seconds, window)
        return bool(taken), float(debt)

    def _take_locally(self, name: str, now: float, cost_seconds: float, window: float) -> tuple[bool, float]:
        """Do the same as the Lua script, in the memory of this process."""
        stored = max(self._local_full_at.get(name, 0.0) - now, 0.0)
        debt = min(stored, window)
        is_taken = debt + cost_seconds <= window + _ROUNDING
        if is_taken:
            debt += cost_seconds
        if len(self._local_full_at) >= _MAX_LOCAL:
            self._local_full_at = {key: full_at for key, full_at in self._local_full_at.items() if full_at > now}
        if is_taken or debt < stored:
            self._local_full_at[name] = now + debt
        return is_taken, debt


def too_many(kind: str, message: str, retry_seconds: float, *, is_worth_a_retry: bool = True) -> ApiError:
    """A 429 with the wait in both headers that the SDKs read, or with the advice not to retry."""
    seconds = min(retry_seconds, _MAX_RETRY_SECONDS)
    headers = {"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}
    if not is_worth_a_retry:
        headers = {"x-should-retry": "false"}
    return ApiError(Problem(status=429, message=message, type=kind, code="rate_limit_exceeded"), headers)


def duration(seconds: float) -> str:
    """Format a duration as OpenAI's headers do: `12ms`, `1.5s`, `6m0s`. Rounded up, so that this wait is long enough."""
    milliseconds = math.ceil(seconds * 1000 - _ROUNDING)
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
