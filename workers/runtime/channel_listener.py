"""Channel listener: calls a function for each message of a Redis channel, and reconnects when the connection is lost.

Messages are hints, and the rows hold the same facts, so a lost message does no harm. Pings detect a half-open connection.
"""

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
_RECONNECT_SECONDS: Final = 1.0


class ChannelListener(threading.Thread):
    """Calls `on_message` with the text of each message, until closed."""

    def __init__(
        self,
        client: redis.Redis,
        channel: str,
        on_message: Callable[[str], None],
        *,
        ping_seconds: float = _PING_SECONDS,
        silent_seconds: float = _SILENT_SECONDS,
    ) -> None:
        super().__init__(name=f"listener-{channel}", daemon=True)
        self._client = client
        self._channel = channel
        self._on_message = on_message
        self._ping_seconds = ping_seconds
        self._silent_seconds = silent_seconds
        self._closing = threading.Event()

    def close(self) -> None:
        """Stop within `ping_seconds`."""
        self._closing.set()

    def run(self) -> None:
        while not self._closing.is_set():
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
                    subscription.subscribe(self._channel)
                    self._listen(subscription)
            # redis-py raises TypeError on a socket that it has closed
            except (redis.RedisError, OSError, TypeError) as error:
                log.warning("channel_lost", channel=self._channel, reason=str(error))
                self._closing.wait(_RECONNECT_SECONDS)

    def _listen(self, subscription: Any) -> None:  # Any: redis-py's pub/sub has no types
        """Returns when nothing has arrived for `silent_seconds`, not even the answer to a ping."""
        received_at = time.monotonic()
        while not self._closing.is_set():
            if time.monotonic() - received_at >= self._silent_seconds:
                log.warning("channel_silent", channel=self._channel)
                return
            message = subscription.get_message(timeout=self._ping_seconds)
            if message is None:
                subscription.ping()
                continue
            received_at = time.monotonic()
            if message["type"] == "message":
                self._on_message(message["data"].decode(errors="replace"))
