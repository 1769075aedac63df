"""The ledger: what the engine is at, left where it can be read when the process has died of it.

Knows keys of requests (client, request id) and one small file. It is mapped memory, so a note costs no system call and outlives
whatever ends the process, `kill -9` included. Each thread that works on requests has a section of its own, with two copies and a
byte that says which of them holds: who dies while writing leaves the note before.
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
_LENGTH: Final = struct.Struct("<I")
_KEPT: Final = 4  # ledgers of earlier boots, for clients that are slow to look
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[RequestKey]).decode


class Section(IntEnum):
    """Who notes what it is at."""

    STEP = 0
    INPUT = 1
    COMPILE = 2


class InflightLog:
    """The engine's side. Each section is written by one thread."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        _delete_old(folder)
        self._memory = _map(_path(folder, boot_id), len(Section) * _section_bytes())
        self._recorded: dict[Section, Collection[RequestKey]] = dict.fromkeys(Section, ())

    def record(self, section: Section, keys: Collection[RequestKey]) -> None:
        """Replace the keys of a section. More keys than it has room for make the whole log unreadable."""
        if keys == self._recorded[section]:
            return
        self._recorded[section] = keys
        data = _encode(list(keys))
        if len(data) + _LENGTH.size > _COPY_BYTES:
            data = b""
        start = section * _section_bytes()
        copy = 1 - self._memory[start]
        at = start + _HEADER_BYTES + copy * _COPY_BYTES
        self._memory[at : at + _LENGTH.size + len(data)] = _LENGTH.pack(len(data)) + data
        self._memory[start] = copy


def read_inflight_log(folder: Path, boot_id: str) -> frozenset[RequestKey] | None:
    """What an engine was at when it ended; None when nothing is known of it."""
    try:
        memory = _path(folder, boot_id).read_bytes()
        return frozenset(key for section in Section for key in _read_section(memory, section))
    except (OSError, ValueError, IndexError, struct.error):  # msgspec's errors are ValueErrors
        return None


def _read_section(memory: bytes, section: Section) -> list[RequestKey]:
    start = section * _section_bytes()
    at = start + _HEADER_BYTES + memory[start] * _COPY_BYTES
    (length,) = _LENGTH.unpack_from(memory, at)
    if memory[start] == 0 and length == 0:
        return []  # never written
    return _decode(memory[at + _LENGTH.size : at + _LENGTH.size + length])


def _map(path: Path, size: int) -> mmap.mmap:
    """A new file as memory, with all its room on the disk: to touch memory that the disk has no room for ends a process.

    Without room the memory is nobody's file, and nothing will be known of this boot.
    """
    try:
        with path.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    except OSError:
        path.unlink(missing_ok=True)
        return mmap.mmap(-1, size)


def _section_bytes() -> int:
    return _HEADER_BYTES + 2 * _COPY_BYTES


def _path(folder: Path, boot_id: str) -> Path:
    return folder / f"inflight-{boot_id}"


def _delete_old(folder: Path) -> None:
    with suppress(OSError):
        old = sorted(folder.glob("inflight-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in old[_KEPT:]:
            path.unlink()
