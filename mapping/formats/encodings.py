"""Encodings of text files: detection, and lines with the bytes that they are made of."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mapping.errors import MappingError

_BLOCK: Final = 1 << 20
_BOMS: Final = (  # the longer ones first
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_UNDEFINED_IN_CP1252: Final = b"\x81\x8d\x8f\x90\x9d"


def bom_of(start: bytes) -> tuple[bytes, str | None]:
    """Return the byte order mark that a file starts with, and its encoding."""
    return next(((bom, name) for bom, name in _BOMS if start.startswith(bom)), (b"", None))


def detect_encoding(path: Path) -> str:
    """Return UTF-8, or cp1252 or latin-1 for a file that is not UTF-8 as a whole; a byte order mark decides at once.

    A file with more characters of UTF-8 than wrong bytes is UTF-8 with damaged rows.
    """
    num_wrong = num_right = 0
    has_undefined = False
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with path.open("rb") as file:
        start = file.read(4)
        if (encoding := bom_of(start)[1]) is not None:
            return encoding
        file.seek(0)
        while block := file.read(_BLOCK):
            if block.isascii():
                decoder.reset()
                continue
            text = decoder.decode(block)
            wrong = text.count("\ufffd")
            num_wrong += wrong
            num_right += len(text) - len(text.encode("ascii", "ignore")) - wrong
            has_undefined |= any(byte in block for byte in _UNDEFINED_IN_CP1252)
    if num_wrong <= num_right:
        return "utf-8"
    return "latin-1" if has_undefined else "cp1252"


def check_encoding(name: str) -> str:
    """Return Python's name of an encoding of text. Raises MappingError."""
    try:
        info = codecs.lookup(name)
        "a".encode(name)
    except LookupError as error:
        raise MappingError(
            f"unknown encoding {name!r}: use such as utf-8, cp1252, latin-1 or utf-16", param="encoding"
        ) from error
    return {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(info.name, info.name)


def errors_of(encoding: str) -> str:
    """Return the error handler by which damaged text is decoded and encoded to the same bytes again."""
    return "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"


def read_lines(path: Path, encoding: str, line_end: str = "\n") -> Iterator[tuple[bytes, str]]:
    """Yield each line as bytes and as text, without the byte order mark. Bytes that are no character become surrogates."""
    errors = errors_of(encoding)
    with path.open("rb") as file:
        bom, _ = bom_of(file.read(4))
        file.seek(len(bom))
        if errors == "surrogatepass" or line_end != "\n":
            with io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=line_end) as lines:
                for text in lines:
                    yield text.encode(encoding, errors), text
            return
        for raw in file:
            yield raw, raw.decode(encoding, errors)
