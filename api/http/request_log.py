"""Ids of the request that runs now: its origin, which is stored with what it creates, and those of its line in the log."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

import structlog

from core import ids
from core.telemetry.origin import Origin

_FIELDS: Final = {ids.FILE: "file", ids.UPLOAD: "upload", ids.BATCH: "batch", ids.CHAT: "job"}


@dataclass(frozen=True, slots=True)
class RequestLog:
    """One request. `ids` grows while it runs, also in tasks that it starts."""

    origin: Origin = field(default_factory=Origin)
    ids: dict[str, str] = field(default_factory=dict)


request_log: ContextVar[RequestLog | None] = ContextVar("request_log", default=None)


def current_origin() -> Origin:
    """The origin of the request that runs now; empty outside of one."""
    log = request_log.get()
    return Origin() if log is None else log.origin


def note_ids(**noted: str) -> None:
    """Put ids of what the request works on into its line of the access log, and into all lines of it from now on.

    A text that does not have the form of an id is left out: it came from a client, and may be anything.
    """
    if (log := request_log.get()) is not None:
        made_here = {name: text for name, text in noted.items() if ids.is_made_here(text)}
        log.ids.update(made_here)
        structlog.contextvars.bind_contextvars(**made_here)


def note_created(prefix: str, object_id: str) -> None:
    """Note the id of an object that the request creates, if log lines have a field for its type."""
    if (name := _FIELDS.get(prefix)) is not None:
        note_ids(**{name: object_id})
