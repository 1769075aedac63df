"""What an engine has to say to whoever reads its log. Knows standard error, which may be a file on a full disk."""

from __future__ import annotations

import sys
from contextlib import suppress


def log_stderr(text: str) -> None:
    """Say it; when it cannot be written it is lost, since no thread may end over that."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
