"""Requests that ended an engine, by their fingerprints: who is refused, and who must run alone.

Knows bodies and rows of the quarantine; what a crash says about a line of a shard is `workers.shards.shard_progress`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from db import quarantine
from db.quarantine import QuarantineEntry
from engine.types import Failed, Request
from workers.generation.endpoints.base import EngineRequest

JsonObject = Mapping[str, Any]  # Any: parsed JSON values

_HOW_IT_IS_SENT: Final = frozenset({"model", "stream", "stream_options"})  # the model is named beside the body
_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineView:
    """Quarantined requests of one tenant to one model: fingerprints, and whether they are blocked.

    Methods take parsed JSON bodies, so that a body is parsed once by its caller.
    """

    tenant_id: str
    model: str
    endpoint: str
    known: dict[str, bool]

    def is_blocked(self, body: JsonObject) -> bool:
        """Is this request refused?"""
        return bool(self.known) and self.known.get(self._fingerprint(body), False)

    def is_suspect(self, body: JsonObject) -> bool:
        """Did an engine end while it ran this request, among others?"""
        return bool(self.known) and self._fingerprint(body) in self.known

    def entry(self, body: JsonObject, job_id: str) -> QuarantineEntry:
        """The request as a row of the quarantine."""
        return QuarantineEntry(
            fingerprint=self._fingerprint(body),
            tenant_id=self.tenant_id,
            model=self.model,
            endpoint=self.endpoint,
            job_id=job_id,
        )

    def block(self, body: JsonObject) -> None:
        """Refuse such requests in this process from now on."""
        self.known[self._fingerprint(body)] = True

    def _fingerprint(self, body: JsonObject) -> str:
        return fingerprint(self.tenant_id, self.model, self.endpoint, body)


def as_exclusive(ask: EngineRequest) -> EngineRequest:
    """The request of a suspect, with steps to itself. Only requests that generate share steps in the first place."""
    return msgspec.structs.replace(ask, exclusive=True) if isinstance(ask, Request) else ask


def read_quarantine(
    connection: Connection, *, tenant_id: str, model: str, endpoint: str, kept: timedelta
) -> QuarantineView:
    """As the database has it now."""
    known = dict(quarantine.list_quarantined(tenant_id, model, kept).fetch_all(connection))
    return QuarantineView(tenant_id=tenant_id, model=model, endpoint=endpoint, known=known)


def fingerprint(tenant_id: str, model: str, endpoint: str, body: JsonObject) -> str:
    """SHA-256 of a request's content: equal for bodies that differ only in spelling, or in how the answer is sent."""
    canonical = {name: value for name, value in body.items() if name not in _HOW_IT_IS_SENT}
    return hashlib.sha256(_encode([tenant_id, model, endpoint, canonical])).hexdigest()


def blocked_failure(job_id: str, hours: float) -> Failed:
    """What a convicted request gets instead of an engine."""
    message = (
        f"This request ended the engine whenever it ran, and is refused for {hours:g} hours after that. "
        "Change it, or ask the operator to look at the engine's log."
    )
    return Failed(request_id=job_id, code="engine_crash", message=message)
