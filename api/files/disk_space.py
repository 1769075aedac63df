"""Room on the disk: asked before an upload is read, since a full disk hurts everybody, Postgres first."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio.to_thread
from fastapi import Request

from api.dependencies import AppState
from core.errors import SERVER_ERROR, ApiError, Problem

_COPIES: Final = 2  # the body as it comes in, and the file in the store
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


async def check_room(state: AppState, num_bytes: int) -> None:
    """Raise 507 when storing so many bytes would leave less than `free_disk_bytes`."""
    needed = _COPIES * num_bytes + state.settings.free_disk_bytes
    free = await anyio.to_thread.run_sync(_free_bytes, str(state.files.root))
    if free < needed:
        raise _no_room(f"The server has no room for {num_bytes} bytes: its disk is nearly full.")


async def check_room_for_body(state: AppState, request: Request) -> None:
    """The same for a body that has not been read; one that does not say its length only needs the reserve to be there."""
    await check_room(state, said_length(request))


def said_length(request: Request) -> int:
    """Bytes of a body by its own word; 0 when it says nothing."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 16 else 0


@contextmanager
def full_disk_is_a_problem() -> Iterator[None]:
    """A disk that became full meanwhile is the same 507."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _no_room("The server's disk is full.") from None


def _free_bytes(root: str) -> int:
    return min(shutil.disk_usage(place).free for place in (root, tempfile.gettempdir()))


def _no_room(message: str) -> ApiError:
    problem = Problem(status=507, message=message, type=SERVER_ERROR, code="disk_full")
    return ApiError(problem, {"x-should-retry": "false"})  # a 5xx, but not one that passes within seconds
