"""API keys: their text, their scopes, and the digest that is stored.

A key is `sk-` and eight characters that may be shown again, then 256 random bits that may not. Secrets of that length need no
slow hash: SHA-256 cannot be searched, and a key is found by its digest.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

KEY: Final = "key_"
_SHOWN_BYTES: Final = 4
_SECRET_BYTES: Final = 32
_BYTES_PER_TOKEN: Final = 4


class Scope(StrEnum):
    """A permission of a key. ADMIN includes all others, READ_ONLY every GET."""

    INFERENCE = "inference"
    FILES = "files"
    READ_ONLY = "read-only"
    ADMIN = "admin"


DEFAULT_SCOPES: Final = (Scope.INFERENCE, Scope.FILES)


class KeyState(StrEnum):
    """A key is valid until it expires or is revoked. Its row is kept."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """Limits of a key. None is no limit, except in `calls_per_minute`: there it is the limit of the settings."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    queued_tokens: int | None = None
    concurrent_streams: int | None = None
    calls_per_minute: int | None = None


NO_LIMITS: Final = KeyLimits()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NewKey:
    """A new key, with its text, which is not stored. It has no repr, so that no log prints it."""

    text: str
    prefix: str
    digest: str


def new_key() -> NewKey:
    """Create a key such as `sk-1f9c02ab-5e…`."""
    prefix = f"sk-{secrets.token_hex(_SHOWN_BYTES)}"
    text = f"{prefix}-{secrets.token_hex(_SECRET_BYTES)}"
    return NewKey(text=text, prefix=prefix, digest=key_digest(text))


def key_digest(text: str) -> str:
    """Return the SHA-256 in hex of any text that a client sent: a header may hold any byte."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def estimated_tokens(num_bytes: int) -> int:
    """Estimate the tokens of a request from the bytes of its JSON: one for four, since the api has no tokenizer."""
    return -(-num_bytes // _BYTES_PER_TOKEN)
