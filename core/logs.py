"""Logging: events with fields, JSON in services, coloured on a terminal; never a prompt, a key or a DSN.

A line that cannot be written is dropped: a full disk must not stop the work of a process.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast
from urllib.parse import quote

import structlog


def configure_logging(level: str = "info") -> None:
    """Set up structlog and the standard library, once in each process; logs go to stderr."""
    numeric = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lossy(sys.stderr))),  # it only writes and flushes
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(numeric, logging.WARNING), stream=sys.stderr, force=True)


def engine_log(model: str) -> str:
    """Return the file name of the log of a model's engine. A model name may contain a slash, a file name must not."""
    return f"engine-{quote(model, safe=':')}.log"


class _Lossy:
    """A stream that ignores errors, as the handlers of the standard library do."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or ignore the error."""
        with suppress(OSError):
            self._stream.flush()
