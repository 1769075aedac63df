"""Authentication: map a bearer key to its tenant, scopes and limits.

Callers are cached for a few seconds, so that most requests cost no query; a revoked key stops working within that time. Missing,
malformed, unknown, expired and revoked keys take one path and get one answer.
"""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from core.api_keys import NO_LIMITS, KeyLimits, Scope, key_digest
from core.errors import ApiError, Problem
from core.settings import is_loopback
from db import keys
from db.keys import KeyRow
from db.tables import DEFAULT_TENANT

_MAX_CACHED: Final = 4096
_NOT_VALID: Final = Problem(
    status=401,
    message="The API key is missing or not valid. Send one of this server's keys as 'Authorization: Bearer sk-…'.",
    code="invalid_api_key",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The sender of a request and its rights. `models` None allows all models; `key_id` None: no key was needed."""

    tenant: str
    key_id: str | None = None
    name: str | None = None
    scopes: frozenset[Scope] = frozenset({Scope.ADMIN})
    models: frozenset[str] | None = None
    limits: KeyLimits = NO_LIMITS
    expires_at: datetime | None = None

    def may(self, scopes: Collection[Scope], *, is_reading: bool) -> bool:
        """True for a caller with one of these scopes, or with a scope that includes them."""
        return (
            Scope.ADMIN in self.scopes
            or (is_reading and Scope.READ_ONLY in self.scopes)
            or bool(self.scopes & {*scopes})
        )


KEYLESS: Final = Caller(tenant=DEFAULT_TENANT)


class KeyRing:
    """Cache of the keys in the database, valid and invalid ones."""

    def __init__(
        self,
        database: AsyncEngine,
        *,
        cache_seconds: float,
        open_without_keys: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._cache_seconds = cache_seconds
        self._open_without_keys = open_without_keys
        self._clock = clock
        self._cache: OrderedDict[str, tuple[float, Caller | None]] = OrderedDict()
        self._has_keys = False
        self._checked_at: float | None = None

    async def identify(self, key: str | None, peer: str | None) -> Caller:
        """Return the caller with this key at this address, or raise a 401."""
        if not await self._is_key_needed():
            if self._open_without_keys or (peer is not None and is_loopback(peer)):
                return KEYLESS
            raise not_valid()
        caller = await self._find(key_digest(key or ""))
        if caller is None:
            raise not_valid()
        return caller

    def require_keys(self) -> None:
        """Require a key from now on, since one has been created."""
        self._has_keys = True

    def forget(self, key_id: str) -> None:
        """Read a key again before its next use, since it has been revoked or will expire."""
        for digest in [digest for digest, (_, caller) in self._cache.items() if caller and caller.key_id == key_id]:
            del self._cache[digest]

    async def _is_key_needed(self) -> bool:
        """True for good once a key exists: rows of keys are never deleted."""
        now = self._clock()
        if not self._has_keys and (self._checked_at is None or now - self._checked_at >= self._cache_seconds):
            async with self._database.connect() as connection:
                self._has_keys = bool((await connection.execute(keys.any_key())).scalar_one())
            self._checked_at = now
        return self._has_keys

    async def _find(self, digest: str) -> Caller | None:
        now = self._clock()
        until, caller = self._cache.get(digest, (now, None))
        if until > now:
            return caller
        async with self._database.connect() as connection:
            row = await keys.find_valid_key(digest).async_fetch_optional(connection)
        caller = _to_caller(row) if row is not None and hmac.compare_digest(row.digest, digest) else None
        self._store(digest, now + self._cache_seconds, caller)
        return caller

    def _store(self, digest: str, until: float, caller: Caller | None) -> None:
        """Cache a key; wrong keys too, so that repeated attempts cost no query. The oldest entry is evicted."""
        self._cache[digest] = (until, caller)
        self._cache.move_to_end(digest)
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)


def not_valid() -> ApiError:
    """The 401 of every invalid key; it reveals nothing about the key that was sent."""
    return ApiError(_NOT_VALID, {"www-authenticate": "Bearer"})


def not_allowed(scopes: Collection[Scope]) -> ApiError:
    """The 403 of a valid key without one of these scopes."""
    needed = " or ".join(f"'{scope}'" for scope in scopes or (Scope.ADMIN,))
    message = f"This API key may not do this: it needs the scope {needed}."
    return ApiError(Problem(status=403, message=message, code="insufficient_permissions"))


def _to_caller(row: KeyRow) -> Caller:
    return Caller(
        tenant=row.tenant_id,
        key_id=row.id,
        name=row.name,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        models=None if row.models is None else frozenset(row.models),
        limits=row.limits,
        expires_at=row.expires_at,
    )
