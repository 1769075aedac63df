"""Concurrent streams: how many streamed answers a key has open, over all api processes.

A slot is a member of a sorted set in Valkey, scored by the time at which it is forgotten: so a process that dies gives its slots
back. While Valkey is away each process counts its own.
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

_FORGOTTEN_SECONDS: Final = 900


class NoFreeStream(Exception):
    """The key has as many streams open as it may."""


class StreamSlots:
    """Shares the rate limiter's client, which never waits for long."""

    def __init__(self, client: redis.Redis, key_prefix: str, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._prefix = f"{key_prefix}streams:"
        self._clock = clock
        self._here: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, key_id: str, limit: int) -> AsyncIterator[None]:
        """A slot, for as long as the block lasts; raises NoFreeStream."""
        member = secrets.token_hex(8)
        if self._here[key_id] >= limit or not await self._add(key_id, member, limit):
            raise NoFreeStream
        self._here[key_id] += 1
        try:
            yield
        finally:
            self._here[key_id] -= 1
            if not self._here[key_id]:
                del self._here[key_id]
            with suppress(RedisError, OSError):
                await self._client.zrem(self._prefix + key_id, member)

    async def _add(self, key_id: str, member: str, limit: int) -> bool:
        """Two that come for the last slot at the same moment may both be refused; never are both let in."""
        name, now = self._prefix + key_id, self._clock()
        try:
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.zremrangebyscore(name, "-inf", now)
                pipeline.zadd(name, {member: now + _FORGOTTEN_SECONDS})
                pipeline.zcard(name)
                pipeline.expire(name, _FORGOTTEN_SECONDS)
                _, _, num_open, _ = await pipeline.execute()
            if num_open > limit:
                await self._client.zrem(name, member)
            return bool(num_open <= limit)
        except (RedisError, OSError) as error:
            log.warning("streams_counted_by_process", reason=type(error).__name__)
            return True
