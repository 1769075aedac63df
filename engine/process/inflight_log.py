"""In-flight log: the requests an engine is working on, in a file that can be read after the process crashed.

The file is mapped memory, so a record costs no system call and survives any end of the process, `kill -9` included. Each
thread that works on requests has its own section: two copies, and a byte that selects the valid one. A process that ends in
the middle of a record leaves the one before.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Collection
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final

import msgspec

from engine.types import RequestKey

_COPY_BYTES: Final = 64 << 10
_HEADER_BYTES: Final = 16
_SECTION_BYTES: Final = _HEADER_BYTES + 2 * _COPY_BYTES
_LENGTH: Final = struct.Struct("<I")
_KEPT: Final = 4  # logs of earlier boots, for clients that read them late
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[RequestKey]).decode


class Section(IntEnum):
    """Threads that work on requests: the loop, the input processor, and the queues of constraints and of inputs to embed."""

    STEP = 0
    INPUT = 1
    COMPILE = 2
    EMBED = 3


class InflightLog:
    """Writes the log of one boot. Each section is written by one thread."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        _delete_old(folder)
        self._memory = _map(_path(folder, boot_id), len(Section) * _SECTION_BYTES)
        self._recorded: dict[Section, Collection[RequestKey]] = {}
        for section in Section:
            self.record(section, [])

    def record(self, section: Section, keys: Collection[RequestKey]) -> None:
        """Record that a section's thread works on these requests from now on, and on no others.

        More keys than a section has room for make the whole log unreadable until its next record.
        """
        if keys == self._recorded.get(section):
            return
        self._recorded[section] = keys
        data = _encode(list(keys))
        if len(data) + _LENGTH.size > _COPY_BYTES:
            data = b""
        start = section * _SECTION_BYTES
        copy = 1 - self._memory[start]
        at = start + _HEADER_BYTES + copy * _COPY_BYTES
        self._memory[at : at + _LENGTH.size + len(data)] = _LENGTH.pack(len(data)) + data
        self._memory[start] = copy


def read_inflight_log(folder: Path, boot_id: str) -> frozenset[RequestKey] | None:
    """Return the keys of the requests that an engine was working on when it ended; None if the log is unreadable."""
    try:
        memory = _path(folder, boot_id).read_bytes()
        return frozenset(key for section in Section for key in _read_section(memory, section))
    except (OSError, ValueError, IndexError, struct.error):  # msgspec's errors are ValueErrors
        return None


def _read_section(memory: bytes, section: Section) -> list[RequestKey]:
    start = section * _SECTION_BYTES
    at = start + _HEADER_BYTES + memory[start] * _COPY_BYTES
    (length,) = _LENGTH.unpack_from(memory, at)
    return _decode(memory[at + _LENGTH.size : at + _LENGTH.size + length])


def _map(path: Path, size: int) -> mmap.mmap:
    """Map a new file with all of its blocks allocated, since a write to a page without disk space ends the process (SIGBUS).

    On a full disk, map anonymous memory instead; the log of this boot is then unreadable.
    """
    try:
        with path.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    except OSError:
        path.unlink(missing_ok=True)
        return mmap.mmap(-1, size)


def _path(folder: Path, boot_id: str) -> Path:
    return folder / f"inflight-{boot_id}"


def _delete_old(folder: Path) -> None:
    with suppress(OSError):
        old = sorted(folder.glob("inflight-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in old[_KEPT:]:
            path.unlink()
