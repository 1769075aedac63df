"""kombu Redis transport that skips malformed queue entries instead of crashing the consumer, and wakes less often at rest.

kombu raises an exception for an entry that is no message, which ends the process. Celery itself drops messages with unknown
tasks or content types.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from kombu.transport import TRANSPORT_ALIASES, redis

log = structlog.get_logger()

_NOT_A_MESSAGE: Final = (ValueError, TypeError, KeyError, AttributeError)  # not JSON, or not an envelope


class Channel(redis.Channel):
    """A channel that drops entries that it cannot parse; the sweeper sends a lost ticket again."""

    def _brpop_read(self, **options: Any) -> bool:  # Any: redis-py's own
        try:
            return bool(super()._brpop_read(**options))  # type: ignore[no-untyped-call]  # kombu has no types
        except _NOT_A_MESSAGE as error:
            log.warning("message_ignored", reason=type(error).__name__)
            return True


class Transport(redis.Transport):
    """A transport with such channels."""

    Channel = Channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:  # Any: kombu's own
        """Leave out the timers that look for queues that expire, and for messages that were not acknowledged: there are none."""
        super().register_with_event_loop(connection, loop)  # type: ignore[no-untyped-call]  # kombu has no types
        poller: Any = self.cycle
        poller._binding_expiry_tref.cancel()
        poller._restore_messages_tref.cancel()


def install_transport() -> None:
    """Register the transport under kombu's aliases, for all later connections of this process."""
    for alias in ("redis", "rediss"):
        TRANSPORT_ALIASES[alias] = f"{__name__}:Transport"
