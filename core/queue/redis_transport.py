"""kombu's Redis transport, which outlives what is no message: bytes on a queue's list that nobody of ours put there.

kombu itself answers what it cannot take apart with an exception that ends the consumer's process. Knows lists and envelopes;
nothing of tasks. What is inside a sound envelope is Celery's business, which throws unknown tasks and content types away.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from kombu.transport import TRANSPORT_ALIASES, redis

log = structlog.get_logger()

_NOT_A_MESSAGE: Final = (ValueError, TypeError, KeyError, AttributeError)  # not JSON, or not an envelope


class Channel(redis.Channel):
    """Reads on behind what it cannot read: it is off the list, and a ticket may get lost."""

    def _brpop_read(self, **options: Any) -> bool:  # Any: redis-py's own
        try:
            return bool(super()._brpop_read(**options))  # type: ignore[no-untyped-call]  # kombu has no types
        except _NOT_A_MESSAGE as error:
            log.warning("message_ignored", reason=type(error).__name__)
            return True


class Transport(redis.Transport):
    """See `Channel`."""

    Channel = Channel


def install_transport() -> None:
    """For every connection of this process that is made from here on. An address names its transport by an alias of kombu's."""
    for alias in ("redis", "rediss"):
        TRANSPORT_ALIASES[alias] = f"{__name__}:Transport"
