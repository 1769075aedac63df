"""Waiting for an outcome that a clerk writes into a row and announces over the relay."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from api.services.relay import Subscription
from api.services.waiters import WaitEnded
from core.errors import ApiError

_Outcome = TypeVar("_Outcome")
_FALLBACK_SECONDS: Final = 2.0  # between reads without an event: it was lost, or Redis is down


async def wait_for_outcome(
    subscription: Subscription,
    read: Callable[[], Awaitable[_Outcome | None]],
    timeout_seconds: float,
    *,
    fallback_seconds: float = _FALLBACK_SECONDS,
) -> _Outcome:
    """Return the outcome once `read` finds it in the row; `read` returns None before that.

    Subscribe before the row is inserted, so that no event can be missed. Raises TimeoutError, and the ApiError of a wait
    that was ended (shutdown, a revoked key).
    """
    deadline = time.monotonic() + timeout_seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            await subscription.get(min(left, fallback_seconds))
        except TimeoutError:
            pass
        except WaitEnded as ended:
            raise ApiError(ended.problem) from None
        if (outcome := await read()) is not None:
            return outcome
    raise TimeoutError
