"""Clients of Valkey for the api's event loop, to which a connection that was reset is a lost connection like any other.

On uvloop, writing to one raises a RuntimeError, which redis-py takes for a mistake of its caller: it would not be tried again,
and would end whoever expects only what a broker may do.
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


class Unrepaired(Retry):
    """Of a connection that one task listens to while others subscribe: each of them would repair it, and leave the others deaf.

    What is lost is raised, and the connection made anew by its owner.
    """

    def __init__(self) -> None:
        super().__init__(NoBackoff(), 0)

    async def call_with_retry(
        self, do: Callable[[], Awaitable[_Result]], *_: Any, **__: Any
    ) -> _Result:  # Any: redis-py's
        """Once, whatever comes of it."""
        return await do()


class _ConnectionErrorMixin(AbstractConnection):
    """Beside a connection class of redis-py: TCP, TLS or a Unix socket."""

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """As redis-py's, which has closed the connection by the time it raises."""
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise ConnectionLost(str(error)) from error


def valkey_client(url: str, **options: Any) -> redis.Redis:  # Any: redis-py's options
    """A client of its own pool; connects when it is first used."""
    client: redis.Redis = redis.Redis.from_url(url, **options)
    pool = client.connection_pool
    pool.connection_class = type("Connection", (_ConnectionErrorMixin, pool.connection_class), {})
    return client
