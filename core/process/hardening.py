"""Hardening of processes that handle prompts: private files, no core dumps."""

from __future__ import annotations

import os
import resource
from typing import Final

_PRIVATE: Final = 0o077


def harden_process() -> None:
    """Make new files readable by this user only, also in child processes, and disable core dumps. System calls only."""
    os.umask(_PRIVATE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
