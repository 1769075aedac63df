"""Hearing a channel of hints. What is lost with the broker, rows tell as well; a connection only half there is noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import redis
import structlog

log = structlog.get_logger()

_PING_SECONDS: Final = 5.0
_SILENT_SECONDS: Final = 15.0
_PAUSE_SECONDS: Final = 1.0


class ChannelListener(threading.Thread):
    """Calls `heard` with the text of each message, until closed."""

    def __init__(
        self,
        client: redis.Redis,
        channel: str,
        heard: Callable[[str], None],
        *,
        ping_seconds: float = _PING_SECONDS,
        silent_seconds: float = _SILENT_SECONDS,
    ) -> None:
        super().__init__(name=f"hears-{channel}", daemon=True)
        self._client = client
        self._channel = channel
        self._heard = heard
        self._ping_seconds = ping_seconds
        self._silent_seconds = silent_seconds
        self._closing = threading.Event()

    def close(self) -> None:
        """Hear no more, within a ping's time."""
        self._closing.set()

    def run(self) -> None:
        while not self._closing.is_set():
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
                    subscription.subscribe(self._channel)
                    self._listen(subscription)
            except (redis.RedisError, OSError) as error:
                log.warning("channel_lost", channel=self._channel, reason=str(error))
                self._closing.wait(_PAUSE_SECONDS)

    def _listen(self, subscription: Any) -> None:  # Any: redis-py's pub/sub has no types
        """Returns when nothing is heard any more, not even the answer to a ping."""
        heard_at = time.monotonic()
        while not self._closing.is_set():
            if time.monotonic() - heard_at >= self._silent_seconds:
                log.warning("channel_silent", channel=self._channel)
                return
            message = subscription.get_message(timeout=self._ping_seconds)
            if message is None:
                subscription.ping()
                continue
            heard_at = time.monotonic()
            if message["type"] == "message":
                self._heard(message["data"].decode(errors="replace"))
