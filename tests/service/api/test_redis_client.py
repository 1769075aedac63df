"""Connections to Valkey that are reset while idle, on uvloop, the event loop of the api."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as ConnectionLost

from api.services.redis_client import valkey_client
from api.services.relay import Relay
from core.queue.events import encode_event
from core.settings import Settings
from tests.service.api.test_relay import event


def reset(connection: Any) -> None:  # Any: a connection of redis-py
    """Close the transport as a reset by the peer does."""
    connection._writer.transport.abort()


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.mark.usefixtures("valkey")
async def test_a_reset_connection_raises_connection_error_and_is_replaced(settings: Settings) -> None:
    client = valkey_client(settings.redis_url or "")
    connection = await client.connection_pool.get_connection()
    await connection.send_command("PING")
    reset(connection)
    with pytest.raises(ConnectionLost):
        await connection.send_command("PING")
    await client.connection_pool.release(connection)
    assert await client.ping()
    await client.aclose()


async def test_a_relay_accepts_subscriptions_on_a_reset_connection_and_resubscribes(
    settings: Settings, valkey: redis.Redis
) -> None:
    relay = Relay(settings.redis_url or "", settings.key_prefix)
    await relay.start()
    while not relay.is_connected:
        await asyncio.sleep(0.005)
    async with relay.follow("job") as before:
        reset(relay._pubsub.connection)
        async with relay.follow("job") as beside, relay.follow("other") as after:
            while relay.is_connected:
                await asyncio.sleep(0.005)
            while not relay.is_connected:
                await asyncio.sleep(0.005)
            for job_id in ("job", "other"):
                valkey.publish(f"{settings.key_prefix}job:{job_id}", encode_event(event(1, job_id)))
            assert [(await each.get(20)).job for each in (before, beside, after)] == ["job", "job", "other"]
    await relay.close()
