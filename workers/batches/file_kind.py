"""Kind of a batch file by its first bytes: a file that is something else gets one error that names it, not one per line."""

from __future__ import annotations

import codecs
import re
from typing import BinaryIO, Final

from core.schemas.objects import BatchError
from core.strict_json import InvalidJson, parse_json

_HEAD_BYTES: Final = 4096
_UNPACK: Final = "Unpack it and upload the file inside."
_EXPORT: Final = "Export it as JSON Lines: one JSON object with custom_id, method, url and body per line."
_UTF_8: Final = "Convert it to UTF-8, such as with: iconv -f {} -t UTF-8 IN > OUT."

_MAGIC: Final = (
    (codecs.BOM_UTF32_LE, "The file is UTF-32.", _UTF_8.format("UTF-32")),
    (codecs.BOM_UTF32_BE, "The file is UTF-32.", _UTF_8.format("UTF-32")),
    (codecs.BOM_UTF16_LE, "The file is UTF-16.", _UTF_8.format("UTF-16")),
    (codecs.BOM_UTF16_BE, "The file is UTF-16.", _UTF_8.format("UTF-16")),
    (b"\x1f\x8b", "The file is compressed with gzip.", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "The file is compressed with zstd.", _UNPACK),
    (b"BZh", "The file is compressed with bzip2.", _UNPACK),
    (b"\xfd7zXZ\0", "The file is compressed with xz.", _UNPACK),
    (b"\x04\x22\x4d\x18", "The file is compressed with lz4.", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "The file is a 7z archive.", _UNPACK),
    (b"PAR1", "The file is Parquet.", _EXPORT),
    (b"ARROW1", "The file is Arrow.", _EXPORT),
    (b"Obj\x01", "The file is Avro.", _EXPORT),
    (b"ORC", "The file is ORC.", _EXPORT),
    (b"SQLite format 3\0", "The file is an SQLite database.", _EXPORT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "The file is an old Excel or Word file.", _EXPORT),
    (b"%PDF-", "The file is a PDF.", _EXPORT),
    (b"\x89PNG", "The file is an image.", _EXPORT),
    (b"\xff\xd8\xff", "The file is an image.", _EXPORT),
    (b"GIF8", "The file is an image.", _EXPORT),
    (b"GGUF", "The file is a GGUF model.", "Upload the requests as JSON Lines."),
)
# UTF-16 and UTF-32 without a mark: the first bytes of `{"`, with or without white space before them
_WIDE: Final = (
    (re.compile(rb"(?:[\t\n\r ]\0\0\0)*[{\[]\0\0\0"), "The file is UTF-32 (little-endian).", _UTF_8.format("UTF-32LE")),
    (re.compile(rb"(?:\0\0\0[\t\n\r ])*\0\0\0[{\[]"), "The file is UTF-32 (big-endian).", _UTF_8.format("UTF-32BE")),
    (re.compile(rb"(?:[\t\n\r ]\0)*[{\[]\0"), "The file is UTF-16 (little-endian).", _UTF_8.format("UTF-16LE")),
    (re.compile(rb"(?:\0[\t\n\r ])*\0[{\[]"), "The file is UTF-16 (big-endian).", _UTF_8.format("UTF-16BE")),
)
_ARRAY: Final = (
    "The file is one JSON array.",
    "Write each element on a line of its own, such as with: jq -c '.[]' IN > OUT.",
)
_PRETTY: Final = (
    "The file has JSON over several lines.",
    "Write each request on one line, such as with: jq -c . IN > OUT.",
)
_MARKUP: Final = (
    (re.compile(rb"<(?:!doctype html|html|head|body)\b", re.IGNORECASE), "The file is HTML, perhaps an error page."),
    (re.compile(rb"<\?xml|<[A-Za-z!]"), "The file is XML."),
    (re.compile(rb"```"), "The file is Markdown."),
    (re.compile(rb"---\s*$|(?:- )?custom_id\s*:", re.MULTILINE), "The file is YAML."),
)
_PYTHON: Final = (
    "The file has Python dicts, not JSON.",
    "Write each line with json.dumps, which has double quotes.",
)
_CARRIAGE_RETURNS: Final = (
    "The lines end with carriage returns alone.",
    "Let each line end with a line feed, such as with: tr '\\r' '\\n' < IN > OUT.",
)

_SEPARATORS: Final = (
    (b",", "The file is CSV."),
    (b"\t", "The file has tab-separated values."),
    (b";", "The file is CSV."),
)
_ARRAY_START: Final = re.compile(rb"\[\s*(?:[{\[\]\"]|$)")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_MAC_LINES: Final = re.compile(rb"\}\r+[ \t]*\{")
_OPEN_ENDS: Final = (b"{", b"[", b",")


def check_kind(stream: BinaryIO) -> BatchError | None:
    """Return the error of a file that is not JSON Lines in UTF-8; None if it may be. Leaves the stream at its beginning."""
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    found = _kind(head, is_whole=len(head) < _HEAD_BYTES)
    return None if found is None else BatchError(code="invalid_file_format", message=" ".join(found))


def _kind(head: bytes, *, is_whole: bool) -> tuple[str, str] | None:
    """The kind of the file, and what to do."""
    if head.startswith(b"PK\x03\x04"):
        is_sheet = b"xl/" in head or b"[Content_Types].xml" in head
        return ("The file is an Excel or Word file.", _EXPORT) if is_sheet else ("The file is a zip archive.", _UNPACK)
    for magic, kind, advice in _MAGIC:
        if head.startswith(magic):
            return kind, advice
    for pattern, kind, advice in _WIDE:
        if pattern.match(head):
            return kind, advice
    if head[257:262] == b"ustar":
        return "The file is a tar archive.", _UNPACK
    if not head.lstrip(b"\xef\xbb\xbf\t\r\n ").startswith((b"{", b"[")) and _CONTROL.search(head):
        return "The file is binary.", _EXPORT
    return _text_kind(head.removeprefix(codecs.BOM_UTF8), is_whole=is_whole)


def _text_kind(head: bytes, *, is_whole: bool) -> tuple[str, str] | None:
    lines = [line for line in head.split(b"\n") if line.strip()]
    if not lines:
        return None
    first = lines[0].strip()
    if _MAC_LINES.search(head) and b"\n" not in head.rstrip():
        return _CARRIAGE_RETURNS
    if first.startswith((b"{'", b"[{'")):
        return _PYTHON
    if _ARRAY_START.match(first):
        is_line = len(lines) > 1 and lines[1].lstrip().startswith(b"{") and _is_json(first)
        return None if is_line else _ARRAY
    if first.startswith(b"{"):
        is_open = first.endswith(_OPEN_ENDS) and not first.endswith(b"},")
        return _PRETTY if is_open and lines[1:] and lines[1].lstrip().startswith(b'"') else None
    for pattern, kind in _MARKUP:
        if pattern.match(first):
            return kind, _EXPORT
    return _table_kind(lines if is_whole else lines[:-1] or lines)


def _table_kind(lines: list[bytes]) -> tuple[str, str] | None:
    """A table has a separator as often in its second line as in its first; quoted cells may hold more of them."""
    if len(lines) == 1 and not lines[0].startswith(b"custom_id"):
        return None  # one wrong line has an error of its own
    if any(line.lstrip().startswith(b"{") for line in lines[:3]):
        return None
    for separator, kind in _SEPARATORS:
        if 0 < lines[0].count(separator) <= lines[min(1, len(lines) - 1)].count(separator):
            return kind, _EXPORT
    return "The file is text, but not JSON Lines.", _EXPORT


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except InvalidJson:
        return False
    return True
