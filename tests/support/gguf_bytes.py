"""GGUF files byte by byte, valid or not, for readers of their headers."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

U32, STRING, ARRAY = 4, 8, 9
F32: Final = 0
Raw = tuple[int, bytes]


def text(value: str | bytes) -> bytes:
    """A string with its length."""
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def pair(key: str, value: int | str | bool | Sequence[str] | Raw) -> bytes:
    """A key with its value: a whole number, a string, strings, or a type with raw bytes."""
    match value:
        case bool():
            return text(key) + struct.pack("<I?", 7, value)
        case int():
            return text(key) + struct.pack("<II", U32, value)
        case str():
            return text(key) + struct.pack("<I", STRING) + text(value)
        case (int(kind), bytes(raw)):
            return text(key) + struct.pack("<I", kind) + raw
    items = b"".join(text(str(item)) for item in value)
    return text(key) + struct.pack("<IIQ", ARRAY, STRING, len(value)) + items


def tensor(name: str, shape: Sequence[int], *, kind: int = F32, offset: int = 0) -> bytes:
    """An entry of the tensor table."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    pairs: Mapping[str, int | str | bool | Sequence[str] | Raw],
    tensors: Sequence[bytes] = (),
    *,
    data: int = 0,
    version: int = 3,
    num_tensors: int | None = None,
    num_pairs: int | None = None,
) -> bytes:
    """A file with these keys and tensors, and `data` bytes of weights."""
    counts = (len(tensors) if num_tensors is None else num_tensors, len(pairs) if num_pairs is None else num_pairs)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts)
    head += b"".join(pair(key, value) for key, value in pairs.items()) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data)
