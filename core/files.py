"""The file store: bytes under random ids, in one local directory.

Knows paths and fsync; names, owners and sizes are rows. A file is written beside its place under a temporary name, synced,
then renamed, so that a name either has the whole content or does not exist. Paths are made from our own ids only.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from core.ids import is_id

_TEMPORARY: Final = ".part"
READ_BYTES: Final = 1 << 20


class FileStore:
    """Files of one deployment. Safe for many processes: ids are unique and renames atomic."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, file_id: str) -> Path:
        """Where the content of a file lies; two levels, since a directory of a million names is slow."""
        assert is_id(file_id), "file ids are ours"
        return self.root / hashlib.sha256(file_id.encode()).hexdigest()[:2] / file_id

    @contextmanager
    def write(self, file_id: str) -> Iterator[BinaryIO]:
        """A file that appears under its id when the block ends well, and leaves nothing when it does not."""
        final = self.path(file_id)
        final.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = final.with_name(f"{file_id}.{os.getpid()}{_TEMPORARY}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.rename(final)
            _sync_directory(final.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def open(self, file_id: str) -> BinaryIO:
        """Raises FileNotFoundError when there is no such content."""
        return os.fdopen(os.open(self.path(file_id), os.O_RDONLY | os.O_NOFOLLOW), "rb")

    def size(self, file_id: str) -> int:
        """Bytes of the content."""
        return self.path(file_id).stat().st_size

    def delete(self, file_id: str) -> None:
        """Remove the content; nothing happens when it is gone already."""
        self.path(file_id).unlink(missing_ok=True)

    def remove_leftovers(self, older_than_seconds: float) -> int:
        """Delete temporary files whose writer must have died; returns how many."""
        removed = 0
        for path in self.root.glob(f"*/*{_TEMPORARY}"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - older_than_seconds:
                    path.unlink()
                    removed += 1
        return removed


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
