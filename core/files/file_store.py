"""The file store: bytes under random ids. Names, owners and sizes are rows of the database.

A name either has the whole content or does not exist, in every kind of store. Keys are made from ids of this server only.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from core.errors import Unreachable
from core.ids import is_id

READ_BYTES: Final = 1 << 20
BUCKETS: Final = 256


class FileStoreUnavailable(Unreachable):
    """The file store does not answer, refuses the credentials, or cannot be written to. `reason` has no address."""

    def __init__(self, place: str, reason: str, advice: str) -> None:
        super().__init__(f"The file store {place} cannot be used: {reason}.", advice)
        self.reason = reason


class Hash(Protocol):
    """A hash object of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""


class FileStore(ABC):
    """Files of one deployment. Safe for many processes: ids are unique, and a file appears at once.

    `place` is the directory or the URL, for messages; `directory` is None where there is none. All methods block. They raise
    FileStoreUnavailable when the store cannot be used; one that was slow or busy has been asked again before.
    """

    place: str
    directory: Path | None = None

    @abstractmethod
    def check(self) -> None:
        """Check that files can be written, read, listed and deleted. Called before a process starts to work."""

    @abstractmethod
    def ping(self) -> None:
        """Check within seconds that the store answers."""

    @abstractmethod
    def write(self, file_id: str) -> AbstractContextManager[BinaryIO]:
        """Open a file that appears under its id when the block ends, and leaves nothing when the block raises."""

    @abstractmethod
    def join(self, file_id: str, part_ids: Sequence[str], digest: Hash | None = None) -> None:
        """Concatenate files in this order into one, and add its content to `digest`.

        Raises FileNotFoundError when a part is gone.
        """

    @abstractmethod
    def open(self, file_id: str) -> BinaryIO:
        """Open a file on this machine with the content, for readers that seek or that are other processes.

        Raises FileNotFoundError.
        """

    @abstractmethod
    def read(self, file_id: str, start: int, end: int) -> Iterator[bytes]:
        """Read the bytes from `start` up to, not including, `end`, at most `READ_BYTES` at a time.

        Raises FileNotFoundError at once, before the first bytes are asked for.
        """

    @abstractmethod
    def exists(self, file_id: str) -> bool:
        """Does this file exist?"""

    @abstractmethod
    def delete(self, *file_ids: str) -> None:
        """Delete the contents of files, where they exist."""

    @abstractmethod
    def remove_leftovers(self, older_than_seconds: float) -> int:
        """Delete temporary files of writers that ended early, and return their number."""

    @abstractmethod
    def old_ids(self, bucket: int, older_than_seconds: float) -> list[str]:
        """List the old ids of one of the `BUCKETS` parts of the store; a whole store may have millions."""


def bucket_name(bucket: int) -> str:
    """The name of the directory, or the prefix, of one of the `BUCKETS` parts."""
    return f"{bucket:02x}"


def file_key(file_id: str) -> str:
    """The key of a file. There are two levels, since a directory of a million names is slow."""
    assert is_id(file_id), "file ids are ours"
    return f"{bucket_name(hashlib.sha256(file_id.encode()).digest()[0])}/{file_id}"
