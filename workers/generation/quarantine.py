"""Quarantine of requests that crashed an engine, by fingerprint: some run alone, some are blocked.

`workers.shards.shard_progress` decides on the lines of a shard that were in a crash.
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
from engine.types import Failed
from workers.generation.endpoints.base import EngineRequest

JsonObject = Mapping[str, Any]  # Any: parsed JSON values

_DELIVERY_FIELDS: Final = frozenset({"model", "stream", "stream_options"})  # the model is named beside the body
_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineView:
    """The quarantined requests of one tenant to one model: `entries` maps a fingerprint to whether it is blocked.

    Methods take parsed bodies, so that the caller parses a body once.
    """

    tenant_id: str
    model: str
    endpoint: str
    entries: dict[str, bool]

    def is_blocked(self, body: JsonObject) -> bool:
        """Is this request refused?"""
        return bool(self.entries) and self.entries.get(self._fingerprint(body), False)

    def is_suspect(self, body: JsonObject) -> bool:
        """Was this request in an engine that crashed?"""
        return bool(self.entries) and self._fingerprint(body) in self.entries

    def entry(self, body: JsonObject, job_id: str) -> QuarantineEntry:
        """The quarantine's entry for this request."""
        fingerprint = self._fingerprint(body)
        return QuarantineEntry(
            fingerprint=fingerprint, tenant_id=self.tenant_id, model=self.model, endpoint=self.endpoint, job_id=job_id
        )

    def block(self, body: JsonObject) -> None:
        """Refuse the request from now on, in this view only."""
        self.entries[self._fingerprint(body)] = True

    def _fingerprint(self, body: JsonObject) -> str:
        return request_fingerprint(self.tenant_id, self.model, self.endpoint, body)


def as_exclusive(request: EngineRequest) -> EngineRequest:
    """The request with engine steps to itself."""
    return msgspec.structs.replace(request, exclusive=True)


def read_quarantine(
    connection: Connection, *, tenant_id: str, model: str, endpoint: str, kept: timedelta
) -> QuarantineView:
    """Read the entries that are younger than `kept`."""
    entries = dict(quarantine.list_quarantined(tenant_id, model, kept).fetch_all(connection))
    return QuarantineView(tenant_id=tenant_id, model=model, endpoint=endpoint, entries=entries)


def request_fingerprint(tenant_id: str, model: str, endpoint: str, body: JsonObject) -> str:
    """SHA-256 of what the engine runs: equal for bodies that differ only in spelling, or in how the answer is sent."""
    canonical = {name: value for name, value in body.items() if name not in _DELIVERY_FIELDS}
    return hashlib.sha256(_encode([tenant_id, model, endpoint, canonical])).hexdigest()


def blocked_failure(job_id: str, hours: float) -> Failed:
    """The outcome of a blocked request, which never reaches an engine."""
    message = (
        f"This request crashed the engine repeatedly, and is refused for {hours:g} hours after its last crash. "
        "Change it, or ask the operator to look at the engine's log."
    )
    return Failed(request_id=job_id, code="engine_crash", message=message)
