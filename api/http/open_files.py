"""Open files: a process may have so many, and each connection is one of them. Knows the limit and what is kept back.

The limit is the process's own, which whoever runs it may change meanwhile (`prlimit`); so it is asked for each time.
"""

from __future__ import annotations

import errno
import resource
from typing import Final

RESERVED: Final = 192  # two pools of 30 database connections, Valkey's, logs, and files that are written and read
_LEAST: Final = 16
_MOST: Final = 1 << 16
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE)


def raise_limit() -> None:
    """As far as this process may itself: what a shell starts gets 1024 for historical reasons only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def room_for_connections() -> int:
    """How many clients may be connected, such that work for them still finds files to open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(_LEAST, soft - RESERVED)
