"""OpenAI's list of embeddings, as JSON ready to send."""

from __future__ import annotations

import base64
import struct

import msgspec

from engine.types import Embedded
from workers.generation.endpoints.base import ResponseHeader

_encode = msgspec.json.Encoder().encode


def embedding_list(header: ResponseHeader, embedded: Embedded, *, is_base64: bool) -> str:
    """The vectors in the order of the inputs, as numbers or as the base64 that the official client reads."""
    write = _base64 if is_base64 else _floats
    data = [
        {"object": "embedding", "index": index, "embedding": write(vector)}
        for index, vector in enumerate(embedded.vectors)
    ]
    tokens = embedded.usage.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _encode({"object": "list", "data": data, "model": header.model, "usage": usage}).decode()


def _base64(vector: bytes) -> str:
    """Little-endian float32, the format of the engine and of the official client."""
    return base64.b64encode(vector).decode()


def _floats(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
