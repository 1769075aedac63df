"""A file store in a local directory, or on a file system that all hosts mount.

A file is written in its directory under a temporary name, synced, then renamed.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from core.failpoints import Point, failpoint
from core.files.file_store import READ_BYTES, FileStore, FileStoreUnavailable, Hash, bucket_name, file_key
from core.ids import is_id

_TEMPORARY: Final = ".part"
_ADVICE: Final = "Change its owner to the user of Millrace, or choose another folder with MILLRACE_FILES_DIR."


class DirectoryStore(FileStore):
    """Files below one directory; creates it. Renames are atomic."""

    def __init__(self, root: Path) -> None:
        self.place = str(root)
        self.directory = self.root = root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise FileStoreUnavailable(self.place, f"it cannot be created ({reason})", _ADVICE) from None

    def path(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self.root / file_key(file_id)

    def check(self) -> None:
        self.ping()

    def ping(self) -> None:
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise FileStoreUnavailable(self.place, "nothing can be written to it", _ADVICE)

    @contextmanager
    def write(self, file_id: str) -> Iterator[BinaryIO]:
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
        with self.write(file_id) as target:
            for part_id in part_ids:
                with self.open(part_id) as source:
                    _append(source, target, digest)

    def open(self, file_id: str) -> BinaryIO:
        return os.fdopen(os.open(self.path(file_id), os.O_RDONLY | os.O_NOFOLLOW), "rb")

    def read(self, file_id: str, start: int, end: int) -> Iterator[bytes]:
        return _chunks(self.open(file_id), start, end)

    def exists(self, file_id: str) -> bool:
        return self.path(file_id).is_file()

    def delete(self, *file_ids: str) -> None:
        for file_id in file_ids:
            self.path(file_id).unlink(missing_ok=True)

    def remove_leftovers(self, older_than_seconds: float) -> int:
        removed = 0
        for path in self.root.glob(f"*/*{_TEMPORARY}"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - older_than_seconds:
                    path.unlink()
                    removed += 1
        return removed

    def old_ids(self, bucket: int, older_than_seconds: float) -> list[str]:
        found = []
        with suppress(FileNotFoundError), os.scandir(self.root / bucket_name(bucket)) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    is_old = entry.stat(follow_symlinks=False).st_mtime < time.time() - older_than_seconds
                    if is_old and is_id(entry.name):
                        found.append(entry.name)
        return found


def _chunks(stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with stream:
        stream.seek(start)
        left = end - start
        while left > 0 and (chunk := stream.read(min(READ_BYTES, left))):
            left -= len(chunk)
            yield chunk


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
