"""The file store: bytes under random ids, in one local directory. Names, owners and sizes are rows of the database.

A file is written in its directory under a temporary name, synced, then renamed, so that a name either has the whole content
or does not exist. Paths are made from ids of this server only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from core.failpoints import Point, failpoint
from core.ids import is_id

_TEMPORARY: Final = ".part"
READ_BYTES: Final = 1 << 20
BUCKETS: Final = 256


class Hash(Protocol):
    """A hash object of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""


class FileStore:
    """Files of one deployment. Safe for many processes: ids are unique and renames atomic."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, file_id: str) -> Path:
        """Return the path of a file's content. There are two levels, since a directory of a million names is slow."""
        assert is_id(file_id), "file ids are ours"
        return self.root / hashlib.sha256(file_id.encode()).hexdigest()[:2] / file_id

    @contextmanager
    def write(self, file_id: str) -> Iterator[BinaryIO]:
        """Open a file that appears under its id when the block ends, and leaves nothing when the block raises."""
        final = self.path(file_id)
        final.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = final.with_name(f"{file_id}.{secrets.token_hex(8)}{_TEMPORARY}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
                yield stream
                stream.flush()
                failpoint(Point.FILE_WRITTEN)
                os.fsync(stream.fileno())
            failpoint(Point.FILE_SYNCED)
            temporary.rename(final)
            failpoint(Point.FILE_RENAMED)
            _sync_directory(final.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def join(self, file_id: str, part_ids: Sequence[str], digest: Hash | None = None) -> None:
        """Concatenate files in this order into one, and add its content to `digest`.

        Raises FileNotFoundError when a part is gone.
        """
        with self.write(file_id) as target:
            for part_id in part_ids:
                with self.open(part_id) as source:
                    _append(source, target, digest)

    def open(self, file_id: str) -> BinaryIO:
        """Open the content of a file. Raises FileNotFoundError."""
        return os.fdopen(os.open(self.path(file_id), os.O_RDONLY | os.O_NOFOLLOW), "rb")

    def size(self, file_id: str) -> int:
        """Return the size of the content in bytes."""
        return self.path(file_id).stat().st_size

    def delete(self, file_id: str) -> None:
        """Delete the content, if it exists."""
        self.path(file_id).unlink(missing_ok=True)

    def remove_leftovers(self, older_than_seconds: float) -> int:
        """Delete temporary files of writers that ended early, and return their number."""
        removed = 0
        for path in self.root.glob(f"*/*{_TEMPORARY}"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - older_than_seconds:
                    path.unlink()
                    removed += 1
        return removed

    def old_ids(self, bucket: int, older_than_seconds: float) -> list[str]:
        """List the old ids of one of the `BUCKETS` directories; a whole store may have millions."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.root / f"{bucket:02x}") as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    is_old = entry.stat(follow_symlinks=False).st_mtime < time.time() - older_than_seconds
                    if is_old and is_id(entry.name):
                        found.append(entry.name)
        return found


def _append(source: BinaryIO, target: BinaryIO, digest: Hash | None) -> None:
    """Append in the kernel, which copies or shares blocks, unless a digest needs the bytes."""
    if digest is None and _append_in_kernel(source, target):
        return
    while chunk := source.read(READ_BYTES):
        if digest is not None:
            digest.update(chunk)
        target.write(chunk)


def _append_in_kernel(source: BinaryIO, target: BinaryIO) -> bool:
    """Return False when the system or file system does not support it; the rest begins at the position of `source`."""
    if not hasattr(os, "copy_file_range"):
        return False
    target.flush()
    left = os.fstat(source.fileno()).st_size
    try:
        while left > 0 and (copied := os.copy_file_range(source.fileno(), target.fileno(), left)) > 0:
            left -= copied
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    return left == 0


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
