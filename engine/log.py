"""Log of an engine: standard error, which may be a file on a full disk."""

from __future__ import annotations

import sys
from contextlib import suppress


def log_stderr(text: str) -> None:
    """Write text to standard error; drop it if that fails, since no thread may end because of a log line."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
