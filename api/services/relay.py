"""Relay: one pub/sub connection per process; its events are fanned out to the subscribers of each job.

Frames are forwarded without decoding them. A subscriber that reads too slowly is dropped without affecting the others.
Events that are lost (a reconnect, a restart of the broker) leave a gap that `api.live.follower` fills from the replay list or the
row. Every wait for the broker has a deadline, and a connection that does not answer a ping is replaced.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

import msgspec
import structlog
from prometheus_client import Counter
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.services.redis_client import NoReconnect, valkey_client
from api.services.waiters import Waiter, Waiters
from core.queue.events import Event, decode_event
from core.queue.names import CANCEL_CHANNEL, WANTED_CHANNEL, WATCH_CHANNEL, job_channel, replay_key

log = structlog.get_logger()

QUEUE_EVENTS: Final = 2048
# Errors of a command on a connection that has just broken; the last two come from a closed transport.
_BROKEN: Final = (RedisError, OSError, RuntimeError, AttributeError)
_RECONNECT_SECONDS: Final = 0.5
_RECONNECT_SOON_SECONDS: Final = 0.05
_TIMEOUT_SECONDS: Final = 1.0
_PUBLISH_SECONDS: Final = 0.5
_PING_SECONDS: Final = 2.0
_CANCEL_SECONDS: Final = 0.1


class Subscription(Waiter):
    """The event queue of one subscriber to a job. Use as an async context manager: it subscribes and unsubscribes.

    A list and a future, since thousands are idle at a time: an empty `asyncio.Queue` takes 2.5 KB.
    """

    def __init__(self, relay: Relay, job_id: str, key_id: str | None = None) -> None:
        super().__init__(key_id)
        self.job_id = job_id
        self._relay = relay
        self._events: list[Event] = []
        self.is_overflowed = False

    async def get(self, timeout_seconds: float) -> Event:
        """Return the next event; raises TimeoutError without one, and WaitEnded even when events are queued."""
        self.check()
        if not self._events:
            await self.wait(timeout_seconds)
        return self._events.pop(0)

    def put(self, event: Event) -> None:
        """Queue an event without blocking; a full queue drops it and sets `is_overflowed`."""
        if len(self._events) == QUEUE_EVENTS:
            if not self.is_overflowed:
                self._relay.count_dropped()
            self.is_overflowed = True
            return
        self._events.append(event)
        self.wake()

    async def replay(self) -> list[Event]:
        """The events of the job so far, oldest first; empty once they are deleted."""
        return await self._relay.replay(self.job_id)

    async def __aenter__(self) -> Subscription:
        await self._relay.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._relay.remove(self)


class Relay:
    """Started once per process. A connection without any message for two `ping_seconds` counts as lost."""

    def __init__(
        self,
        url: str,
        key_prefix: str,
        waiters: Waiters | None = None,
        *,
        dropped: Counter | None = None,
        ping_seconds: float = _PING_SECONDS,
    ) -> None:
        self._dropped = dropped
        self._prefix = key_prefix
        self._waiters = waiters or Waiters()
        self._ping_seconds = ping_seconds
        limits = {"socket_timeout": _TIMEOUT_SECONDS, "socket_connect_timeout": _TIMEOUT_SECONDS}
        self.client = valkey_client(url, retry=Retry(NoBackoff(), 0), **limits)
        self._listener = valkey_client(url, retry=NoReconnect(), **limits)
        self._pubsub: Any = None  # Any: redis-py's pub/sub has no types
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._has_received = False
        self._connected = asyncio.Event()

    async def start(self) -> None:
        """Connect and listen in the background; a broker that is down is tried again."""
        self._task = asyncio.create_task(self._run(), name="relay")

    async def close(self) -> None:
        """Stop listening. redis-py loses a cancellation while it connects, so the task is cancelled until it ends."""
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CANCEL_SECONDS)
        await self.client.aclose()
        await self._listener.aclose()

    @property
    def is_connected(self) -> bool:
        """True while events arrive, as far as this process can know."""
        return self._connected.is_set()

    async def wait_connected(self, seconds: float) -> bool:
        """True when connected now or within `seconds`: a lost connection is replaced in a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._connected.wait()
        return self.is_connected

    def count_dropped(self) -> None:
        """Count a subscription that was not read fast enough."""
        if self._dropped is not None:
            self._dropped.inc()

    def follow(self, job_id: str, key_id: str | None = None) -> Subscription:
        """A subscription to the events of a job, open inside its `async with`; it ends when the key is revoked."""
        return Subscription(self, job_id, key_id)

    async def replay(self, job_id: str) -> list[Event]:
        """Return the latest events of a job, oldest first; empty when they have expired."""
        try:
            stored = await self.client.lrange(self._prefix + replay_key(job_id), 0, -1)
        except RedisError:
            return []
        return [decode_event(data) for data in stored if isinstance(data, bytes)]

    async def send_cancel(self, job_id: str) -> None:
        """Notify workers of a cancelled job. Best effort: they also read the row with their next heartbeat."""
        await self._publish(CANCEL_CHANNEL, job_id)

    async def send_watch(self, job_id: str) -> None:
        """Ask workers to stream this line of a batch for the next keep-alive intervals. Best effort."""
        await self._publish(WATCH_CHANNEL, job_id)

    async def send_wanted(self, model: str) -> None:
        """Hurry the launchers that may load a model. Best effort: they also read the queued jobs every second."""
        await self._publish(WANTED_CHANNEL, model)

    async def _publish(self, channel: str, message: str) -> None:
        if not self.is_connected:
            return
        with suppress(RedisError, OSError):
            async with asyncio.timeout(_PUBLISH_SECONDS):
                await self.client.publish(self._prefix + channel, message)

    async def add(self, subscription: Subscription) -> None:
        """Subscribe. Raises nothing while the broker is down: a new connection subscribes to all channels."""
        self._waiters.add(subscription)
        of_job = self._subscriptions.setdefault(subscription.job_id, set())
        of_job.add(subscription)
        if len(of_job) == 1:
            await self._command("subscribe", subscription.job_id)

    async def remove(self, subscription: Subscription) -> None:
        """Unsubscribe from the channel with the last subscription to the job."""
        self._waiters.remove(subscription)
        of_job = self._subscriptions.get(subscription.job_id, set())
        of_job.discard(subscription)
        if not of_job:
            self._subscriptions.pop(subscription.job_id, None)
            await self._command("unsubscribe", subscription.job_id)

    async def _command(self, name: str, job_id: str) -> None:
        if not self.is_connected:
            return  # the next connection subscribes to all channels
        async with self._lock:
            if self.is_connected:
                with suppress(*_BROKEN):
                    await getattr(self._pubsub, name)(self._prefix + job_channel(job_id))

    async def _run(self) -> None:
        """Connect and listen for ever; a connection that worked is replaced at once, since no stream is served until then."""
        while True:
            self._has_received = False
            try:
                await self._connect()
                await self._listen()
            except Exception as error:  # the edge of this task: without a relay no stream gets events
                log.warning("relay_disconnected", reason=str(error), kind=type(error).__name__)
            self._connected.clear()
            await asyncio.sleep(_RECONNECT_SOON_SECONDS if self._has_received else _RECONNECT_SECONDS)

    async def _connect(self) -> None:
        async with self._lock:
            if self._pubsub is not None:
                with suppress(*_BROKEN):
                    await self._pubsub.aclose()
            self._pubsub = self._listener.pubsub()
            subscribed: set[str] = set()
            async with asyncio.timeout(3 * _TIMEOUT_SECONDS):
                while missing := self._channels() - subscribed:  # subscriptions may be added meanwhile
                    await self._pubsub.subscribe(*missing)
                    subscribed |= missing
                self._connected.set()
                log.info("relay_connected")

    def _channels(self) -> set[str]:
        """The channels of all subscriptions, and one that keeps the connection in use without any."""
        return {self._prefix + "relay", *(self._prefix + job_channel(job_id) for job_id in self._subscriptions)}

    async def _listen(self) -> None:
        """Dispatch messages until the connection breaks; raises TimeoutError when a ping gets no reply (half-open connection)."""
        is_pinged = False
        while True:
            message = await self._pubsub.get_message(timeout=self._ping_seconds)
            if message is not None:
                is_pinged, self._has_received = False, True
                if message["type"] == "message":
                    self._dispatch(message["data"])
            elif is_pinged:
                raise TimeoutError("no message and no reply to a ping")
            else:
                async with self._lock:
                    await self._pubsub.ping()
                is_pinged = True

    def _dispatch(self, data: bytes) -> None:
        try:
            event = decode_event(data)
        except msgspec.MsgspecError:
            log.warning("invalid_event")
            return
        for subscription in self._subscriptions.get(event.job, ()):
            subscription.put(event)
