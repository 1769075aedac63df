"""Identifiers: a prefix for the type of object, then 48 bits of time and 128 random bits.

The time comes first so that ids of one table sort by age and index pages stay in memory; the random part cannot be guessed.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
import zlib
from datetime import datetime
from functools import lru_cache
from typing import Final

FILE: Final = "file-"
UPLOAD: Final = "upload_"
PART: Final = "part_"
BATCH: Final = "batch_"
BATCH_LINE: Final = "batch_req_"
CHAT: Final = "chatcmpl-"
COMPLETION: Final = "cmpl-"
EMBEDDING: Final = "embd-"
SHARD: Final = "shard_"
VALIDATION: Final = "validation_"
REQUEST: Final = "req_"
WORKER: Final = "worker_"
WEBHOOK: Final = "we_"
EVENT: Final = "evt_"

_MAX_LENGTH: Final = 80
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"
_TIME_DIGITS: Final = 9
_RANDOM_DIGITS: Final = 25
_RANDOM_DIGIT: Final = bytes(ord(_DIGITS[byte % 32]) for byte in range(256))
_RANDOM: Final = re.compile(r"[0-9a-v]{36}")
_MADE_HERE: Final = re.compile(r"[a-z]+(_[a-z]+)*[-_][0-9a-v]{36}")


def new_id(prefix: str) -> str:
    """Create an id such as `batch_0d9k…`: lower-case base32hex keeps the order of the bytes."""
    milliseconds, random = time.time_ns() // 1_000_000, secrets.token_bytes(_RANDOM_DIGITS + 2)
    middle = _DIGITS[(milliseconds & 7) << 2 | random[0] & 3]  # the last bits of the time, and the first random ones
    end = _DIGITS[(random[1] & 1) << 4]  # one random bit, and zeros that fill the last byte
    return f"{prefix}{_time_digits(milliseconds)}{middle}{random[2:].translate(_RANDOM_DIGIT).decode()}{end}"


def first_id(prefix: str, at: datetime) -> str:
    """Return the id behind which all ids sort that are made from a moment on."""
    return prefix + _encode(int(at.timestamp() * 1000), bytes(16))


def is_id(text: str) -> bool:
    """Does the text have the form of an id? A cheap test that saves queries."""
    return 0 < len(text) <= _MAX_LENGTH and text.isascii() and text.replace("-", "").replace("_", "").isalnum()


def is_made_here(text: str) -> bool:
    """Does the text have the form of an id of `new_id`, with any prefix?"""
    return _MADE_HERE.fullmatch(text) is not None


def has_prefix(text: str, prefix: str) -> bool:
    """Does the text have the form of an id with this prefix? Such an id is a place in time, whether its object exists or not."""
    return text.startswith(prefix) and _RANDOM.fullmatch(text, len(prefix)) is not None


def derive_seed(request_id: str) -> int:
    """Return 32 bits derived from an id: a job without a seed gets the same one whenever it runs again."""
    return zlib.crc32(request_id.encode())


@lru_cache(maxsize=1)  # thousands of ids are made within a millisecond
def _time_digits(milliseconds: int) -> str:
    return _encode(milliseconds, bytes(16))[:_TIME_DIGITS]


def _encode(milliseconds: int, random: bytes) -> str:
    data = (milliseconds % 2**48).to_bytes(6, "big") + random
    return base64.b32hexencode(data).decode().rstrip("=").lower()
