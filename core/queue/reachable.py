"""Check that the queue answers, before a process depends on it."""

from __future__ import annotations

from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.service_urls import queue_unreachable

_SECONDS: Final = 3.0


def check_queue(url: str) -> None:
    """Raise Unreachable, with host, port and reason, unless Valkey or Redis answers within a few seconds."""
    try:
        with redis.Redis.from_url(
            url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError, TypeError) as error:  # an option that redis-py does not have
        raise queue_unreachable(url, error) from None
