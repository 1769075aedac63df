"""Findings about Valkey or Redis. Its content may be lost as a whole; it must not evict single keys."""

from __future__ import annotations

from typing import Any, Final

import redis

from cli.doctor.findings import Finding, Level
from core.service_urls import queue_unreachable

_OLDEST: Final = (6, 2)
_ANSWER_SECONDS: Final = 3
_HEADROOM: Final = 0.8
_MIB: Final = 1 << 20


def queue_findings(url: str) -> list[Finding]:
    """Check its version, its memory, and its eviction policy."""
    try:
        with redis.Redis.from_url(
            url, socket_timeout=_ANSWER_SECONDS, socket_connect_timeout=_ANSWER_SECONDS
        ) as client:
            info: dict[str, Any] = client.info()  # Any: numbers and strings by name
    except (redis.RedisError, OSError, ValueError, TypeError) as error:  # an option that redis-py does not have
        failure = queue_unreachable(url, error)
        return [Finding(Level.BAD, "queue", failure.problem, f"{failure.advice} Without it batches run, chats do not.")]
    return [version(info), eviction(info), memory(info)]


def version(info: dict[str, Any]) -> Finding:
    """Require Redis 6.2: Celery's transport uses its commands."""
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"
    numbers = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if numbers < _OLDEST:
        return Finding(Level.BAD, "queue", f"{name} is too old", "Use Valkey, or Redis 6.2 or later.")
    return Finding(Level.OK, "queue", name)


def eviction(info: dict[str, Any]) -> Finding:
    """Require noeviction: a worker whose queue binding is evicted gets no more tickets."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return Finding(Level.OK, "queue eviction", "none")
    message = f"maxmemory-policy is {policy}: when memory is full, tickets and the queues' own bookkeeping vanish"
    return Finding(
        Level.BAD,
        "queue eviction",
        message,
        "Run CONFIG SET maxmemory-policy noeviction, and set it in the server's file.",
    )


def memory(info: dict[str, Any]) -> Finding:
    """Compare the used memory with its limit."""
    used, limit = int(info["used_memory"]), int(info.get("maxmemory") or 0)
    if not limit:
        return Finding(Level.OK, "queue memory", f"{used / _MIB:.0f} MiB used, no limit but the machine's")
    message = f"{used / _MIB:.0f} of {limit / _MIB:.0f} MiB used"
    if used < _HEADROOM * limit:
        return Finding(Level.OK, "queue memory", message)
    advice = (
        "Raise the limit (CONFIG SET maxmemory), or look for other programs that fill it: Millrace stores little there."
    )
    return Finding(Level.BAD if used >= limit else Level.WARNING, "queue memory", message, advice)
