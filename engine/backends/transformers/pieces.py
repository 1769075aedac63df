"""The bytes of tokens: each step of a fast tokenizer's decoder, applied to the spelling of one token.

Text is decoded token by token while it is generated, so decoders that look at neighbours are of no use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final

_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_Step = Callable[[str], str | bytes]


def piece_decoder(decoder: Any) -> Callable[[str], bytes]:  # Any: a decoder of the library tokenizers, or None
    """Return a function from the spelling of a token to its bytes."""
    state = json.loads(decoder.__getstate__()) if decoder is not None else {}
    steps = [step for part in state.get("decoders", [state]) if (step := _step(part)) is not None]

    def decode(spelling: str) -> bytes:
        value: str | bytes = spelling
        for step in steps:
            if isinstance(value, bytes):
                break
            value = step(value)
        return value.encode() if isinstance(value, str) else value

    return decode


def _step(part: dict[str, Any]) -> _Step | None:  # Any: JSON
    """The function of one decoder; None for those that join tokens."""
    match part:
        case {"type": "ByteLevel"}:
            return _from_byte_level
        case {"type": "ByteFallback"}:
            return _from_hexadecimal
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return lambda text: text.replace(old, new)
        case {"type": "Metaspace", "replacement": str(mark)}:
            return lambda text: text.replace(mark, " ")
        case {"type": "WordPiece", "prefix": str(prefix)}:
            return lambda text: text.removeprefix(prefix) if text.startswith(prefix) else f" {text}"
        case {"type": "BPEDecoder", "suffix": str(suffix)}:
            return lambda text: f"{text.removesuffix(suffix)} " if text.endswith(suffix) else text
    return None


def _from_hexadecimal(text: str) -> str | bytes:
    found = _BYTE.fullmatch(text)
    return bytes.fromhex(found[1]) if found else text


def _from_byte_level(text: str) -> str | bytes:
    """Letters that stand for bytes; a token with any other letter was added as text."""
    letters = _letters()
    try:
        return bytes(letters[letter] for letter in text)
    except KeyError:
        return text


@cache
def _letters() -> dict[str, int]:
    """GPT-2's letter of each byte: itself if it is visible, else the next one from U+0100 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + rank): byte for rank, byte in enumerate(hidden)}
