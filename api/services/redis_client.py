"""Async clients of Valkey: an error on a connection that was reset is a ConnectionError.

On uvloop, a write to a closed transport raises a RuntimeError. redis-py takes that for a mistake of its caller: it does not
reconnect, and callers that handle RedisError would not catch it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import redis.asyncio as redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost

_Result = TypeVar("_Result")


class NoReconnect(Retry):
    """For the connection of a pub/sub listener: raise a lost connection, and leave reconnecting to the listener.

    Several tasks send commands on that connection; if each of them reconnected, the subscriptions of the others would be lost.
    """

    def __init__(self) -> None:
        super().__init__(NoBackoff(), 0)

    async def call_with_retry(
        self, do: Callable[[], Awaitable[_Result]], *_: Any, **__: Any
    ) -> _Result:  # Any: redis-py's
        return await do()


class _ConnectionErrorMixin(AbstractConnection):
    """Mixin for a connection class of redis-py (TCP, TLS, Unix socket): maps RuntimeError to ConnectionError."""

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """redis-py has closed the connection by the time this raises."""
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise ConnectionLost(str(error)) from error


def valkey_client(url: str, **options: Any) -> redis.Redis:  # Any: redis-py's options
    """A client with its own connection pool; it connects on first use."""
    client: redis.Redis = redis.Redis.from_url(url, **options)
    pool = client.connection_pool
    pool.connection_class = type("Connection", (_ConnectionErrorMixin, pool.connection_class), {})
    return client
