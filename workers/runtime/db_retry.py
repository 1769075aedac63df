"""Retries of a database write while the database is away, so that a computed result is not lost with one failed statement.

The write must be fenced, since its lease may end meanwhile. It must also recognise its own earlier commit, since a lost reply to
a commit is one of the errors.
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

MOST_SECONDS: Final = 120.0  # twice a lease: another worker has the work by then
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0

_Written = TypeVar("_Written")


def retry_write(
    write: Callable[[], _Written],
    is_held: Callable[[], bool],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> _Written:
    """Call `write` until it succeeds, while `is_held`. Raises the last error, and at once one that is not transient."""
    started_at, pause = clock(), _FIRST_PAUSE_SECONDS
    while True:
        try:
            return write()
        except SQLAlchemyError as error:
            if not is_transient(error) or not is_held() or clock() - started_at > MOST_SECONDS:
                raise
            log.warning("write_failed", reason=type(error).__name__)
        sleep(pause * (1 - jitter() / 2))  # writers that collided on a row do not collide again
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
