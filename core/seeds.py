"""Deterministic seeds: a job without a seed gets one from its id, so that a repeated run gives the same answer."""

from __future__ import annotations

import zlib


def derive_seed(request_id: str) -> int:
    """Return 32 bits; they are random, since ids are."""
    return zlib.crc32(request_id.encode())
