"""What a process that handles prompts does first: nobody else reads what it writes, and its death leaves no image of it."""

from __future__ import annotations

import os
import resource
from typing import Final

_PRIVATE: Final = 0o077


def harden_process() -> None:
    """New files are this user's alone, also in what this process starts; no core dumps. System calls only."""
    os.umask(_PRIVATE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
