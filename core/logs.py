"""Logging: events with fields, JSON in services, coloured on a terminal; never a prompt, a key or a DSN.

A line that cannot be written is dropped: a full disk must not stop the work of a process. Repeats are dropped too.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple, TextIO, cast
from urllib.parse import quote

import structlog
from structlog.typing import EventDict

_processors: Final[list[structlog.types.Processor]] = []  # one list, since loggers keep the one of their first line


def configure_logging(level: str = "info") -> None:
    """Set up structlog and the standard library, once in each process; logs go to stderr."""
    numeric = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    _processors[:] = [
        DropRepeats(),  # before ids are added, by which repeats differ
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        renderer,
    ]
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lossy(sys.stderr))),  # it only writes and flushes
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.basicConfig(level=max(numeric, logging.WARNING), handlers=[handler], force=True)


class DropRepeats:
    """Drops a warning or error that was logged before and has come again since, as in a loop that waits for a service.

    It is logged again, with the number of `repeats`, when it has been away for `quiet_seconds`, and every `remind_seconds`.
    Lines are the same when they differ at most in the fields of `_VARYING`, which tell pieces of work apart. Only lines with
    a `reason` or an exception can be repeats: each of the others reports a change.
    """

    _VARYING: Final = frozenset({"request_id", "job", "id", "number", "exc_info"})
    _MAX_KEPT: Final = 256

    def __init__(
        self,
        *,
        quiet_seconds: float = 60,
        remind_seconds: float = 600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet_seconds = quiet_seconds
        self._remind_seconds = remind_seconds
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def __call__(self, _: object, level: str, event: EventDict) -> EventDict:
        """Return the event, or raise DropEvent."""
        if level not in ("warning", "error") or not ("reason" in event or "exc_info" in event):
            return event
        fields = {name: value for name, value in event.items() if name not in self._VARYING}
        key, now = repr((level, sorted(fields.items()), repr(event.get("exc_info")))), self._clock()
        with self._lock:
            seen = self._seen.pop(key, None)
            if seen is None or now - seen.at >= self._quiet_seconds or now - seen.logged_at >= self._remind_seconds:
                self._seen[key] = _Seen(at=now, logged_at=now)
                if len(self._seen) > self._MAX_KEPT:
                    del self._seen[next(iter(self._seen))]
                return event if seen is None or not seen.repeats else {**event, "repeats": seen.repeats}
            self._seen[key] = _Seen(at=now, logged_at=seen.logged_at, repeats=seen.repeats + 1)
        raise structlog.DropEvent


class _Seen(NamedTuple):
    """When a line was seen and logged last, and how often it was dropped since."""

    at: float
    logged_at: float
    repeats: int = 0


def engine_log(model: str, device: str | None = None) -> str:
    """Return the file name of the log of a model's engine. A model name may contain a slash, a file name must not."""
    return device_log(f"engine-{quote(model, safe=':')}", device)


def device_log(name: str, device: str | None = None) -> str:
    """Return the file name of the log of a process of this device, since a host may have several: `chat@cuda:0.log`.

    On all of the CPU, and where the device is not known, it is `chat.log`.
    """
    return f"{name}.log" if device in (None, "cpu") else f"{name}@{device}.log"


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
