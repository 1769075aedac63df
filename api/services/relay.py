"""The relay: one pub/sub connection per process, fanned out to whoever follows a job.

Knows channels and events, forwards frames unread. A subscriber that does not keep up is dropped, the others never notice.
Whatever is lost here (a reconnect, a restart of the broker) is a gap that `api.live.follower` fills from the replay list or row.
A broker that does not answer holds nobody up: what waits for it has a deadline, and a connection on which not even the answer
to a ping arrives is given up.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

import msgspec
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.services.redis_client import Unrepaired, valkey_client
from api.services.waiters import Waiter, Waiters
from core.queue.events import Event, decode_event
from core.queue.names import CANCEL_CHANNEL, WATCH_CHANNEL, job_channel, replay_key

log = structlog.get_logger()

QUEUE_EVENTS: Final = 2048
# What a connection that has just broken answers to another thing said on it: the last two are a closed transport's.
_BROKEN: Final = (RedisError, OSError, RuntimeError, AttributeError)
_RECONNECT_SECONDS: Final = 0.5
_AGAIN_SECONDS: Final = 0.05
_ANSWER_SECONDS: Final = 1.0
_HINT_SECONDS: Final = 0.5
_PING_SECONDS: Final = 2.0


class Subscription(Waiter):
    """A follower's queue, for one reader. Use as a context manager; leaving it unsubscribes.

    A list and a future, since thousands of them are idle: an `asyncio.Queue` holds 2.5 KB while it is empty.
    """

    def __init__(self, relay: Relay, job_id: str, key_id: str | None = None) -> None:
        super().__init__(key_id)
        self.job_id = job_id
        self._relay = relay
        self._events: list[Event] = []
        self.is_overflowed = False

    async def get(self, timeout_seconds: float) -> Event:
        """The next event; raises TimeoutError after a silence, and ToldToEnd whatever has come."""
        self.check()
        if not self._events:
            await self.wait(timeout_seconds)
        return self._events.pop(0)

    def put(self, event: Event) -> None:
        """Never blocks: a full queue marks the follower as too slow."""
        if len(self._events) == QUEUE_EVENTS:
            self.is_overflowed = True
            return
        self._events.append(event)
        self.wake()

    async def __aenter__(self) -> Subscription:
        await self._relay.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._relay.remove(self)


class Relay:
    """Started once with the process. A connection is lost when nothing comes for two `ping_seconds`."""

    def __init__(
        self, url: str, key_prefix: str, readers: Waiters | None = None, *, ping_seconds: float = _PING_SECONDS
    ) -> None:
        self._prefix = key_prefix
        self._readers = readers or Waiters()
        self._ping_seconds = ping_seconds
        limits = {"socket_timeout": _ANSWER_SECONDS, "socket_connect_timeout": _ANSWER_SECONDS}
        self.client = valkey_client(url, retry=Retry(NoBackoff(), 0), **limits)
        self._listener = valkey_client(url, retry=Unrepaired(), **limits)
        self._pubsub: Any = None  # Any: redis-py's pub/sub has no types
        self._followers: dict[str, set[Subscription]] = {}
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._is_heard = False
        self._connected = asyncio.Event()

    async def start(self) -> None:
        """Begin to listen; a broker that is not there yet is waited for in the background."""
        self._task = asyncio.create_task(self._run(), name="relay")

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self.client.aclose()
        await self._listener.aclose()

    @property
    def is_connected(self) -> bool:
        """Does it hear the broker, as far as it knows?"""
        return self._connected.is_set()

    async def wait_connected(self, seconds: float) -> bool:
        """Is it connected, or will it be within this time? A connection that was lost is made again in a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._connected.wait()
        return self.is_connected

    def follow(self, job_id: str, key_id: str | None = None) -> Subscription:
        """A subscription to a job's events for who has this key, open inside its `async with`."""
        return Subscription(self, job_id, key_id)

    async def replay(self, job_id: str) -> list[Event]:
        """The events of a job so far, oldest first; empty when they are gone."""
        try:
            stored = await self.client.lrange(self._prefix + replay_key(job_id), 0, -1)
        except RedisError:
            return []
        return [decode_event(data) for data in stored if isinstance(data, bytes)]

    async def send_cancel(self, job_id: str) -> None:
        """Hint to the workers; the row already says it, and they see that with their next heartbeat."""
        await self._hint(CANCEL_CHANNEL, job_id)

    async def send_watch(self, job_id: str) -> None:
        """Hint to the workers: somebody follows this line of a batch, for the next keep-alives."""
        await self._hint(WATCH_CHANNEL, job_id)

    async def _hint(self, channel: str, job_id: str) -> None:
        if not self.is_connected:
            return
        with suppress(RedisError, OSError):
            async with asyncio.timeout(_HINT_SECONDS):
                await self.client.publish(self._prefix + channel, job_id)

    async def add(self, subscription: Subscription) -> None:
        """Subscribe; nothing is raised when the broker is away, its return resubscribes everything."""
        self._readers.add(subscription)
        followers = self._followers.setdefault(subscription.job_id, set())
        followers.add(subscription)
        if len(followers) == 1:
            await self._command("subscribe", subscription.job_id)

    async def remove(self, subscription: Subscription) -> None:
        """Unsubscribe."""
        self._readers.remove(subscription)
        followers = self._followers.get(subscription.job_id, set())
        followers.discard(subscription)
        if not followers:
            self._followers.pop(subscription.job_id, None)
            await self._command("unsubscribe", subscription.job_id)

    async def _command(self, name: str, job_id: str) -> None:
        if not self.is_connected:
            return  # whoever connects subscribes to everything
        async with self._lock:
            if self.is_connected:
                with suppress(*_BROKEN):
                    await getattr(self._pubsub, name)(self._prefix + job_channel(job_id))

    async def _run(self) -> None:
        """Where something was heard, it connects again at once: nobody is served until then."""
        while True:
            self._is_heard = False
            try:
                await self._connect()
                await self._listen()
            except Exception as error:  # whatever it is: without a relay, every stream would be silent
                log.warning("relay_lost", reason=str(error), kind=type(error).__name__)
            self._connected.clear()
            await asyncio.sleep(_AGAIN_SECONDS if self._is_heard else _RECONNECT_SECONDS)

    async def _connect(self) -> None:
        async with self._lock:
            if self._pubsub is not None:
                with suppress(*_BROKEN):
                    await self._pubsub.aclose()
            self._pubsub = self._listener.pubsub()
            channels = [self._prefix + job_channel(job_id) for job_id in self._followers]
            async with asyncio.timeout(3 * _ANSWER_SECONDS):
                await self._pubsub.subscribe(self._prefix + "relay", *channels)
            self._connected.set()

    async def _listen(self) -> None:
        """Raises OSError when the connection is only half there."""
        is_pinged = False
        while True:
            message = await self._pubsub.get_message(timeout=self._ping_seconds)
            if message is not None:
                is_pinged, self._is_heard = False, True
                if message["type"] == "message":
                    self._dispatch(message["data"])
            elif is_pinged:
                raise TimeoutError("nothing is heard, not even the answer to a ping")
            else:
                async with self._lock:
                    await self._pubsub.ping()
                is_pinged = True

    def _dispatch(self, data: bytes) -> None:
        try:
            event = decode_event(data)
        except msgspec.MsgspecError:
            log.warning("foreign_event")
            return
        for follower in self._followers.get(event.job, ()):
            follower.put(event)
