"""Rate limits: how much somebody has left of what they may use in a minute, or in an hour.

A limit fills continuously: a key with 60 requests a minute gets one back each second. What is kept is one number per limit, the
moment at which it will be full again (the generic cell rate algorithm), in Valkey, so that all api processes see the same. While
Valkey is away each process keeps the numbers itself, by the same arithmetic: limits hold per process then, and nobody is refused
for the outage.
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
_REST_SECONDS: Final = 5.0
_MOST_LOCAL: Final = 10_000
_MOST_RETRY_SECONDS: Final = 120.0  # SDKs give up when told to wait longer

# KEYS: the limit. ARGV: now, the seconds that the cost takes to come back, the window. Returns (1 if taken, seconds until full).
# A moment more than a window ahead is of a clock that was wrong, and is corrected even by who is refused.
_TAKE: Final = """
local now, cost, window = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local had = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') - now, 0)
local debt = math.min(had, window)
local taken = 0
if debt + cost <= window + 0.000001 then
    taken = 1
    debt = debt + cost
end
if taken == 1 or debt < had then
    redis.call('SET', KEYS[1], string.format('%.6f', now + debt), 'PX', math.ceil(debt * 1000) + 1000)
end
return {taken, string.format('%.6f', debt)}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Whose limit it is (a name of a key, tenant or address), what it counts, and how many may be used in which time."""

    owner: str
    kind: str
    limit: int
    per: Literal["minute", "hour"] = "minute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A limit after something was taken of it, or was not. Durations are seconds."""

    limit: int
    is_taken: bool
    remaining: int
    reset_seconds: float
    retry_seconds: float


class RateLimiter:
    """Takes from limits. `clock` tells unix seconds: api processes share it through Valkey."""

    def __init__(self, url: str, key_prefix: str, clock: Callable[[], float] = time.time) -> None:
        retry = Retry(NoBackoff(), 0)
        self.client = valkey_client(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS, retry=retry
        )
        self._take: Any = self.client.register_script(_TAKE)  # Any: redis-py's scripts have no types
        self._prefix = f"{key_prefix}limit:"
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._away_until = 0.0

    async def take(self, rate: Rate, cost: int) -> Level:
        """Take `cost` of a limit, all of it or nothing. A cost over the limit itself is never taken."""
        window = _WINDOW_SECONDS[rate.per]
        now, cost_seconds = self._clock(), cost * window / rate.limit
        is_taken, debt = await self._take_somewhere(f"{rate.owner}:{rate.kind}", now, cost_seconds, window)
        return Level(
            limit=rate.limit,
            is_taken=is_taken,
            remaining=max(0, math.floor((window - debt) * rate.limit / window + _ROUNDING)),
            reset_seconds=debt,
            retry_seconds=0.0 if is_taken else max(0.0, debt + cost_seconds - window),
        )

    async def close(self) -> None:
        """Leave Valkey."""
        await self.client.aclose()

    async def _take_somewhere(self, name: str, now: float, cost_seconds: float, window: float) -> tuple[bool, float]:
        if now < self._away_until:
            return self._take_here(name, now, cost_seconds, window)
        try:
            taken, debt = await self._take(keys=[self._prefix + name], args=[now, cost_seconds, window])
        except (RedisError, OSError) as error:
            log.warning("limits_kept_by_process", reason=type(error).__name__)
            self._away_until = now + _REST_SECONDS
            return self._take_here(name, now, cost_seconds, window)
        return bool(taken), float(debt)

    def _take_here(self, name: str, now: float, cost_seconds: float, window: float) -> tuple[bool, float]:
        """The script, in Python."""
        had = max(self._full_at.get(name, 0.0) - now, 0.0)
        debt = min(had, window)
        is_taken = debt + cost_seconds <= window + _ROUNDING
        if is_taken:
            debt += cost_seconds
        if len(self._full_at) >= _MOST_LOCAL:
            self._full_at = {known: full_at for known, full_at in self._full_at.items() if full_at > now}
        if is_taken or debt < had:
            self._full_at[name] = now + debt
        return is_taken, debt


def too_many(kind: str, message: str, retry_seconds: float, *, is_worth_a_retry: bool = True) -> ApiError:
    """429, with how long to wait in both headers the SDKs read."""
    seconds = min(retry_seconds, _MOST_RETRY_SECONDS)
    headers = {"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}
    if not is_worth_a_retry:
        headers = {"x-should-retry": "false"}
    return ApiError(Problem(status=429, message=message, type=kind, code="rate_limit_exceeded"), headers)


def duration(seconds: float) -> str:
    """As OpenAI writes one in its headers: `12ms`, `1.5s`, `6m0s`. Rounded up, so that who waits this long has waited enough."""
    milliseconds = math.ceil(seconds * 1000 - _ROUNDING)
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
