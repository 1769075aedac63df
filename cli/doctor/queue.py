"""What the Valkey or Redis says of itself. What it holds may be lost; what it must not do is drop some of it silently."""

from __future__ import annotations

from typing import Any, Final

import redis

from cli.doctor.findings import Finding, Level

_OLDEST: Final = (6, 2)
_ANSWER_SECONDS: Final = 3
_HEADROOM: Final = 0.8
_MIB: Final = 1 << 20


def look(url: str) -> list[Finding]:
    """Its version, its memory, and what it does when that is full."""
    try:
        with redis.Redis.from_url(
            url, socket_timeout=_ANSWER_SECONDS, socket_connect_timeout=_ANSWER_SECONDS
        ) as client:
            info: dict[str, Any] = client.info()  # Any: numbers and texts by name
    except (redis.RedisError, OSError, ValueError) as error:
        advice = "Start it, or correct REDIS_URL. Batches go on without it, chats do not."
        return [Finding(Level.BAD, "queue", f"does not answer ({type(error).__name__})", advice)]
    return [version(info), eviction(info), memory(info)]


def version(info: dict[str, Any]) -> Finding:
    """Celery's transport needs commands of 6.2."""
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"
    numbers = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if numbers < _OLDEST:
        return Finding(Level.BAD, "queue", f"{name} is too old", "Take Valkey, or Redis 6.2 or later.")
    return Finding(Level.OK, "queue", name)


def eviction(info: dict[str, Any]) -> Finding:
    """An evicted queue binding is a worker that hears nothing any more."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return Finding(Level.OK, "queue eviction", "none")
    message = f"maxmemory-policy is {policy}: when memory is full, tickets and the queues' own bookkeeping vanish"
    return Finding(Level.BAD, "queue eviction", message, "CONFIG SET maxmemory-policy noeviction, and in its file")


def memory(info: dict[str, Any]) -> Finding:
    """How near its limit it is."""
    used, limit = int(info["used_memory"]), int(info.get("maxmemory") or 0)
    if not limit:
        return Finding(Level.OK, "queue memory", f"{used / _MIB:.0f} MiB used, no limit but the machine's")
    message = f"{used / _MIB:.0f} of {limit / _MIB:.0f} MiB used"
    if used < _HEADROOM * limit:
        return Finding(Level.OK, "queue memory", message)
    advice = "Give it more (CONFIG SET maxmemory), or find who else fills it: Millrace keeps little there."
    return Finding(Level.BAD if used >= limit else Level.WARNING, "queue memory", message, advice)
