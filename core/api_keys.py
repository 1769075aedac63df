"""API keys: what one looks like, what it may do, and the digest that is stored of it.

A key is `sk-` and eight characters that may be shown again, then 256 random bits that may not. Secrets of that length need no
slow hash: SHA-256 cannot be searched, and lets a key be found by its digest.
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
    """What a key may do. ADMIN includes all others, READ_ONLY every GET."""

    INFERENCE = "inference"
    FILES = "files"
    READ_ONLY = "read-only"
    ADMIN = "admin"


DEFAULT_SCOPES: Final = (Scope.INFERENCE, Scope.FILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What a key may use at most; None is no limit, but for `calls_per_minute`: that of the settings."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    queued_tokens: int | None = None
    concurrent_streams: int | None = None
    calls_per_minute: int | None = None


NO_LIMITS: Final = KeyLimits()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NewKey:
    """A key that was just made; the only moment its text exists. Not printed by accident: it has no repr."""

    text: str
    prefix: str
    digest: str


def new_key() -> NewKey:
    """A fresh key such as `sk-1f9c02ab-5e…`."""
    prefix = f"sk-{secrets.token_hex(_SHOWN_BYTES)}"
    text = f"{prefix}-{secrets.token_hex(_SECRET_BYTES)}"
    return NewKey(text=text, prefix=prefix, digest=key_digest(text))


def key_digest(text: str) -> str:
    """SHA-256 in hex, of whatever a client sent: header text may hold any byte."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def estimated_tokens(num_bytes: int) -> int:
    """Tokens of a request whose JSON has so many bytes: one for every four, as no tokenizer is at hand where limits are."""
    return -(-num_bytes // _BYTES_PER_TOKEN)
