"""Limit of concurrent streams per API key, over all api processes.

An open stream is a member of a sorted set in Valkey; its score is the time it expires, so the streams of a crashed process are
freed. While Valkey is down each process counts its own streams.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import redis.asyncio as redis
import structlog
from redis.exceptions import RedisError

log = structlog.get_logger()

_EXPIRY_SECONDS: Final = 900


class NoFreeStream(Exception):
    """The key has its maximum of streams open."""


class StreamLimiter:
    """Uses the client of the rate limiter, which has short time-outs."""

    def __init__(self, client: redis.Redis, key_prefix: str, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._prefix = f"{key_prefix}streams:"
        self._clock = clock
        self._local: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, key_id: str, limit: int) -> AsyncIterator[None]:
        """Count one open stream for the duration of the block; raises NoFreeStream."""
        member = secrets.token_hex(8)
        if self._local[key_id] >= limit or not await self._add(key_id, member, limit):
            raise NoFreeStream
        self._local[key_id] += 1
        try:
            yield
        finally:
            self._local[key_id] -= 1
            if not self._local[key_id]:
                del self._local[key_id]
            with suppress(RedisError, OSError):
                await self._client.zrem(self._prefix + key_id, member)

    async def _add(self, key_id: str, member: str, limit: int) -> bool:
        """Two requests for the last stream at the same moment may both be refused, but never both accepted."""
        name, now = self._prefix + key_id, self._clock()
        try:
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.zremrangebyscore(name, "-inf", now)
                pipeline.zadd(name, {member: now + _EXPIRY_SECONDS})
                pipeline.zcard(name)
                pipeline.expire(name, _EXPIRY_SECONDS)
                _, _, num_open, _ = await pipeline.execute()
            if num_open > limit:
                await self._client.zrem(name, member)
            return bool(num_open <= limit)
        except (RedisError, OSError) as error:
            log.warning("stream_limits_local", reason=type(error).__name__)
            return True
