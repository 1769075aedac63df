"""Untouched memory: gives pages of new KV memory back to the system, which takes and clears them again at their first use.

llama.cpp writes zeros over all KV memory when it allocates it, so that all of it would be resident before any request. Memory
that is zero reads the same when it is given back. A large memory is kept, since other engines must not find it free.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

_MAPS: Final = Path("/proc/self/maps")
_MOST_BYTES: Final = 256 << 20
_PIECE_BYTES: Final = 1 << 20
_libc: Final = ctypes.PyDLL(None)  # it keeps the interpreter's lock, so that no thread of Python writes meanwhile

Range = tuple[int, int]


@contextmanager
def left_untouched() -> Iterator[None]:
    """Give back the pages of the memory that is mapped meanwhile and is all zero. Does nothing on other systems than Linux."""
    before = _anonymous_ranges()
    yield
    new = [piece for each in _anonymous_ranges() for piece in _without(each, before)]
    large = [(start, end) for start, end in new if end - start > _PIECE_BYTES]
    if sum(end - start for start, end in large) <= _MOST_BYTES:
        for start, end in large:
            for address in range(start, end - _PIECE_BYTES + 1, _PIECE_BYTES):
                _give_back_if_zero(address)


def _give_back_if_zero(address: int) -> None:
    piece = (ctypes.c_uint64 * (_PIECE_BYTES // 8)).from_address(address)
    if not np.ctypeslib.as_array(piece).any():
        _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(_PIECE_BYTES), mmap.MADV_DONTNEED)


def _anonymous_ranges() -> list[Range]:
    """The private memory of this process that is no file's, has no name and can be written, by address."""
    if not _MAPS.exists():
        return []
    fields = (line.split() for line in _MAPS.read_text().splitlines())
    spans = (line[0].split("-") for line in fields if len(line) == 5 and line[1] == "rw-p")
    return [(int(start, 16), int(end, 16)) for start, end in spans]


def _without(each: Range, others: list[Range]) -> Iterator[Range]:
    """The parts of a range that are in none of the others, which are sorted."""
    start, end = each
    for other_start, other_end in others:
        if other_end <= start or other_start >= end:
            continue
        if other_start > start:
            yield start, other_start
        start = max(start, other_end)
    if start < end:
        yield start, end
