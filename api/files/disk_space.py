"""Disk space: checked before an upload is read, since a full disk stops Postgres first and then everything else."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio.to_thread
from fastapi import Request

from api.dependencies import FilesDep, SettingsDep
from core.errors import SERVER_ERROR, ApiError, Problem
from core.files.file_store import FileStore

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


async def check_room(files: FileStore, reserved_bytes: int, num_bytes: int) -> None:
    """Raise the 507 when storing so many bytes would leave less than `reserved_bytes` free.

    A directory needs room for two copies: the body as it arrives, and the file. For object storage the first must fit.
    """
    places, needed = [tempfile.gettempdir()], num_bytes
    if files.directory is not None:
        places, needed = [str(files.directory), *places], 2 * num_bytes + reserved_bytes
    if await anyio.to_thread.run_sync(_free_bytes, places) < needed:
        raise _no_room(f"The server has no room for {num_bytes} bytes: its disk is nearly full.")


async def check_room_for_body(request: Request, files: FilesDep, settings: SettingsDep) -> None:
    """The same for a body that has not been read; a body of unknown length only needs the reserve to be free."""
    await check_room(files, settings.free_disk_bytes, declared_length(request))


def declared_length(request: Request) -> int:
    """The bytes of a body as its Content-Length declares them; 0 when it declares none."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 16 else 0


@contextmanager
def full_disk_is_a_problem() -> Iterator[None]:
    """Raise the same 507 for a disk that became full meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _no_room("The server's disk is full.") from None


def _free_bytes(places: list[str]) -> int:
    return min(shutil.disk_usage(place).free for place in places)


def _no_room(message: str) -> ApiError:
    problem = Problem(status=507, message=message, type=SERVER_ERROR, code="disk_full")
    return ApiError(problem, {"x-should-retry": "false"})  # a 5xx, but not one that passes within seconds
