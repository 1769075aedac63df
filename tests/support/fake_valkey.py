"""A Valkey in the process of the test (fakeredis), for code that needs a broker but no real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fakeredis
import redis.asyncio


class FakeValkey:
    """One server; all its clients see the same data and channels."""

    def __init__(self) -> None:
        self._server = fakeredis.FakeServer()
        self.client: Any = fakeredis.FakeRedis(server=self._server)  # Any: replies of redis-py are unions

    def connect(self, url: str, **options: Any) -> redis.asyncio.Redis:  # Any: options of redis-py
        """Return an asyncio client; takes the place of `api.services.redis_client.valkey_client`."""
        client: redis.asyncio.Redis = fakeredis.FakeAsyncRedis(server=self._server, retry=options.get("retry"))
        return client

    @contextmanager
    def away(self) -> Iterator[None]:
        """Refuse every command, on open connections too, inside the block."""
        self._server.connected = False
        try:
            yield
        finally:
            self._server.connected = True
