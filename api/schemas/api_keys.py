"""Schemas of `/v1/me` and `/v1/api_keys`. Times are unix seconds."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, Field

from core.api_keys import DEFAULT_SCOPES, KeyLimits, KeyState, Scope
from core.schemas.base import RequestModel
from core.schemas.objects import ResponseModel

DAY_SECONDS: Final = 86400
_MAX_GRACE_SECONDS: Final = 365 * DAY_SECONDS
_MAX_LIFETIME_SECONDS: Final = 3650 * DAY_SECONDS
_MAX_LIMIT: Final = 10**12

_Item = TypeVar("_Item")


def _without_repeats(items: list[_Item]) -> list[_Item]:
    return list(dict.fromkeys(items))


KeyName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Scopes = Annotated[
    list[Annotated[Scope, Field(strict=False)]], Field(min_length=1, max_length=16), AfterValidator(_without_repeats)
]
Models = Annotated[list[KeyName], Field(min_length=1, max_length=256), AfterValidator(_without_repeats)]
Limit = Annotated[int, Field(ge=1, le=_MAX_LIMIT)] | None
Lifetime = Annotated[int, Field(ge=1, le=_MAX_LIFETIME_SECONDS)] | None


class CallerObject(ResponseModel):
    """The sender of a request and its rights. Without a key, `api_key_id` and `name` are null; `models` null is all of them,
    `expires_at` null is never."""

    object: Literal["caller"] = "caller"
    tenant: str
    api_key_id: str | None
    name: str | None
    scopes: list[Scope]
    models: list[str] | None
    expires_at: int | None
    keys_required: bool


class ApiKeyCreate(RequestModel):
    """Body of `POST /v1/api_keys`. Rights that are left out are those of the caller; without an end it lasts as long as the
    caller's key."""

    name: KeyName = "key"
    scopes: Scopes = Field(default_factory=lambda: [*DEFAULT_SCOPES])
    models: Models | None = None
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    queued_tokens: Limit = None
    concurrent_streams: Limit = None
    calls_per_minute: Limit = None
    expires_after_seconds: Lifetime = None

    def limits(self) -> KeyLimits:
        """The limits that were asked for."""
        return KeyLimits(**{each.name: getattr(self, each.name) for each in fields(KeyLimits)})


class ApiKeyRotate(RequestModel):
    """Body of `POST /v1/api_keys/{id}/rotate`: how long the old key stays valid, and the new one."""

    grace_seconds: Annotated[int, Field(ge=0, le=_MAX_GRACE_SECONDS)] = DAY_SECONDS
    expires_after_seconds: Lifetime = None


class ApiKeyObject(ResponseModel):
    """A key without its secret, of which `prefix` may be shown. `models` null is all of them, a limit of null is none."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    prefix: str
    state: KeyState
    scopes: list[Scope]
    models: list[str] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    queued_tokens: int | None
    concurrent_streams: int | None
    calls_per_minute: int | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None


class ApiKeyWithSecret(ApiKeyObject):
    """A key after its creation or a rotation, the only responses with its secret.

    `key` is null when a request is repeated under its `Idempotency-Key`, since the secret is not stored. `warning` says what
    the first key of a server changes.
    """

    key: str | None = Field(repr=False)
    warning: str | None = None
