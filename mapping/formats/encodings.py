"""Encodings of text files: detection, and lines with the bytes that they are made of."""

from __future__ import annotations

import codecs
import io
import re
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
_HANDLER: Final = "millrace.pass_or_mark"
_WIDE: Final = ("utf-16", "utf-32")
_UNDEFINED_IN_CP1252: Final = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_AFTER_CR: Final = re.compile(rb"(?<=\r)(?!\n)")


def bom_of(path: Path) -> tuple[bytes, str | None]:
    """Return the byte order mark that a file starts with, and its encoding."""
    with path.open("rb") as file:
        start = file.read(4)
    return next(((bom, name) for bom, name in _BOMS if start.startswith(bom)), (b"", None))


def encoding_of(path: Path, wanted: str | None) -> str:
    """Return the encoding of a file: of its byte order mark, the wanted one, or the detected one. Raises MappingError."""
    return bom_of(path)[1] or (_checked(wanted) if wanted else _detected(path))


def _detected(path: Path) -> str:
    """Return UTF-8, or cp1252 or latin-1 for a file that is not UTF-8 as a whole.

    A file with more characters of UTF-8 than wrong bytes is UTF-8 with damaged rows. Zeros in each second byte mean UTF-16.
    """
    num_wrong = num_right = 0
    has_undefined = False
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if file.tell() == len(block) and len(start := block[:64]) > 3:
                for encoding, zeros in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
                    if not any(zeros):
                        return encoding
            if block.isascii():
                num_wrong += len(decoder.decode(b"", final=True))
                decoder.reset()
                continue
            text = decoder.decode(block)
            wrong = text.count("\ufffd")
            num_wrong += wrong
            num_right += len(text) - len(text.encode("ascii", "ignore")) - wrong
            has_undefined = has_undefined or _UNDEFINED_IN_CP1252.search(block) is not None
    num_wrong += len(decoder.decode(b"", final=True))
    if num_wrong <= num_right:
        return "utf-8"
    return "latin-1" if has_undefined else "cp1252"


def _checked(name: str) -> str:
    """Return Python's name of an encoding in which line ends can be found. Raises MappingError."""
    try:
        known = codecs.lookup(name).name
        is_text = known.startswith(_WIDE) or "\r\n,".encode(name).endswith(b"\r\n,")
    except LookupError:
        is_text = False
    if not is_text:
        raise MappingError(f"unknown encoding {name!r}: use such as utf-8, cp1252, latin-1 or utf-16", param="encoding")
    return {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(known, known)


def errors_of(encoding: str) -> str:
    """Return the error handler by which damaged text is decoded and encoded to the same bytes again."""
    return _HANDLER if encoding.startswith(_WIDE) else "surrogateescape"


def _pass_or_mark(error: UnicodeError) -> tuple[str | bytes, int]:
    """Pass halves of surrogate pairs through, and mark what is no code point or is cut off at the end of the file."""
    try:
        return codecs.lookup_error("surrogatepass")(error)
    except UnicodeDecodeError as other:
        return "\ufffd", other.end


codecs.register_error(_HANDLER, _pass_or_mark)


def read_lines(path: Path, encoding: str, *, ends_at_cr: bool = False) -> Iterator[tuple[bytes, str]]:
    """Yield each line as bytes and as text, without the byte order mark. Bytes that are no character become surrogates.

    Lines end at LF, CR or CRLF. With `ends_at_cr` they are read so that a file without any LF needs little memory.
    """
    errors = errors_of(encoding)
    bom, _ = bom_of(path)
    with path.open("rb") as file:
        file.seek(len(bom))
        if ends_at_cr or encoding.startswith(_WIDE):
            with io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="") as lines:
                for text in lines:
                    yield text.encode(encoding, errors), text
            return
        for raw in file:
            if (at := raw.find(b"\r")) < 0 or raw[at + 1 :] in (b"", b"\n"):
                yield raw, raw.decode(encoding, errors)
                continue
            for part in _AFTER_CR.split(raw):
                if part:
                    yield part, part.decode(encoding, errors)
