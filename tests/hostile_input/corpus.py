"""Hostile bytes, created on demand so that the repository contains none of them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.hostile_input.target import batch_line

MIB: Final = 1 << 20


def deep_lists(depth: int) -> bytes:
    """Return `[[[…]]]`."""
    return b"[" * depth + b"]" * depth


def deep_objects(depth: int) -> bytes:
    """Return `{"a":{"a":…1}}`."""
    return b'{"a":' * depth + b"1" + b"}" * depth


def digits(number: int) -> bytes:
    """Return an integer of so many digits."""
    return b"9" * number


def gzip_bomb(num_bytes: int) -> bytes:
    """Return compressed zeros, a thousandth of their size."""
    squeezed = zlib.compressobj(9, wbits=31)
    return b"".join([squeezed.compress(bytes(MIB)) for _ in range(num_bytes // MIB)]) + squeezed.flush()


def png() -> bytes:
    """Return an image of one red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0\xff\0\0")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zipped() -> bytes:
    """Return a valid file in an archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../in.jsonl", batch_line())
    return stream.getvalue()


def parquet_like() -> bytes:
    """Return magic words around noise that is the same each time."""
    noise = b"".join(zlib.crc32(struct.pack(">I", n)).to_bytes(4, "big") for n in range(5000))
    return b"PAR1" + noise + struct.pack("<I", 300) + b"PAR1"


BINARIES: Final[dict[str, Callable[[], bytes]]] = {
    "noise": lambda: b"".join(zlib.crc32(bytes([n % 251, n % 13])).to_bytes(4, "big") for n in range(4000)),
    "zeros": lambda: bytes(100_000),
    "png": png,
    "gzip": lambda: gzip.compress(batch_line() * 100, mtime=0),
    "zip": zipped,
    "parquet": parquet_like,
    "utf-16": lambda: batch_line().decode().encode("utf-16"),
    "utf-16-without-bom": lambda: batch_line().decode().encode("utf-16-le"),
    "utf-32": lambda: batch_line().decode().encode("utf-32"),
    "latin-1": lambda: b'{"custom_id": "\xe9t\xe9"}\n',
    "html": lambda: b"<!doctype html><title>404</title>\n",
    "csv": lambda: b"custom_id,method,url,body\na,POST,/v1,{}\n",
    "one-document": lambda: json.dumps([json.loads(batch_line())], indent=2).encode(),
    "one-list": lambda: json.dumps([json.loads(batch_line())] * 3).encode(),
    "carriage-returns": lambda: batch_line("a").replace(b"\n", b"\r") + batch_line("b").replace(b"\n", b"\r"),
}


def write_long_line(path: Path, num_bytes: int) -> Path:
    """Write one line of so many bytes, in pieces; only its length is wrong."""
    before, after = batch_line().split(b'"hello"')
    with path.open("wb") as stream:
        stream.write(before + b'"')
        for _ in range(num_bytes // MIB):
            stream.write(b"x" * MIB)
        stream.write(b'"' + after)
    return path


def write_many_lines(path: Path, number: int) -> Path:
    """Write valid lines."""
    line = batch_line("line-@")
    with path.open("wb") as stream:
        stream.writelines(line.replace(b"@", str(n).encode()) for n in range(number))
    return path
