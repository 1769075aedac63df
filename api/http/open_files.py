"""The limit of open files: raise it at the start, and derive the number of connections from it.

The operator may change the limit of a running process (`prlimit`), so it is read each time.
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
    """Raise the soft limit, which is 1024 under a shell for historical reasons, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def room_for_connections() -> int:
    """The number of clients that may be connected while files for their work remain."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(_LEAST, soft - RESERVED)
