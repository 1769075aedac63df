"""Recording how work ended, in a database that may be away: what was computed is worth more than one statement that failed.

Knows errors and pauses; nothing of jobs or shards. What is written must be fenced, since a lease may end meanwhile, and must be
told apart from a commit whose reply got lost, since that is one of the errors.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from db.connections import is_transient

log = structlog.get_logger()

MOST_SECONDS: Final = 120.0  # twice a lease: somebody else is at the work by then
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0

_Written = TypeVar("_Written")


def retry_write(
    write: Callable[[], _Written],
    is_ours: Callable[[], bool],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> _Written:
    """Write, again and again while the work may still be ours. Raises the last error, and at once one that will not pass."""
    began, pause = clock(), _FIRST_PAUSE_SECONDS
    while True:
        try:
            return write()
        except SQLAlchemyError as error:
            if not is_transient(error) or not is_ours() or clock() - began > MOST_SECONDS:
                raise
            log.warning("write_failed", reason=type(error).__name__)
        sleep(pause * (1 - jitter() / 2))  # those who met on a row do not meet again
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
