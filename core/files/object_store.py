"""A file store in object storage: S3 and what speaks its API, Google Cloud Storage, Azure.

An object appears when its last byte has arrived, never before. A big one is sent in parts; an aborted one leaves no part, apart
from those of a process that was killed, which a lifecycle rule of the bucket removes (docs/files.md). The credentials are those
of the cloud's own tools: environment variables, or the identity of the machine.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

from core.errors import ConfigError
from core.failpoints import Point, failpoint
from core.files.file_store import READ_BYTES, FileStore, Hash, bucket_name, file_key
from core.files.object_errors import is_missing_bucket, unavailable_store
from core.ids import is_id

if TYPE_CHECKING:
    from obstore import WritableFile
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import ObjectStore as Client

_PART_BYTES: Final = 8 << 20  # of an upload and of a request for bytes; S3 allows 10,000 parts
_PARTS_AT_ONCE: Final = 2
_PATIENCE_SECONDS: Final = 45.0  # less than a transaction of the clerk may be idle, see `allow_long_transaction`
_PING_SECONDS: Final = 5.0
_CHECK_KEY: Final = "check.millrace"  # written and deleted by each process that starts
_ENDPOINTS: Final = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
)

_Result = TypeVar("_Result")


class ObjectStore(FileStore):
    """Files below one prefix of a bucket, which no other deployment uses.

    A request that meets a busy server or a broken connection is repeated for `patience_seconds`, with growing pauses; one that
    only looks or deletes is repeated once.
    """

    def __init__(self, url: str, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self.place = url
        self._patient = self._connect(retries=100, seconds=patience_seconds, timeout_seconds=patience_seconds)
        self._quick = self._connect(retries=1, seconds=_PING_SECONDS, timeout_seconds=_PING_SECONDS)

    def _connect(self, *, retries: int, seconds: float, timeout_seconds: float) -> Client:
        try:
            from obstore.store import from_url
        except ImportError:
            message = "MILLRACE_FILES_URL names object storage, which needs an extra: pip install 'millrace[objects]'."
            raise ConfigError(message) from None
        retry: RetryConfig = {
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=seconds),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        }
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=_PING_SECONDS),
            "timeout": timedelta(seconds=timeout_seconds),
            "allow_http": any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS),
        }
        return self._answered(lambda: from_url(self.place, retry_config=retry, client_options=client))

    def _answered(self, call: Callable[[], _Result]) -> _Result:
        """Call obstore. Raises FileNotFoundError for a missing object, and FileStoreUnavailable for all else."""
        from obstore.exceptions import BaseError

        try:
            return call()
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise unavailable_store(self.place, error) from None
            raise FileNotFoundError("there is no such object") from None
        except (BaseError, ValueError, OSError) as error:
            raise unavailable_store(self.place, error) from None

    def check(self) -> None:
        import obstore

        self.ping()
        self._answered(lambda: obstore.put(self._quick, _CHECK_KEY, b"checked", use_multipart=False))
        with suppress(FileNotFoundError):  # another process has finished its check
            self._answered(lambda: obstore.get(self._quick, _CHECK_KEY).bytes())
        self._delete_keys([_CHECK_KEY])

    def ping(self) -> None:
        import obstore

        self._answered(lambda: next(iter(obstore.list(self._quick, _CHECK_KEY, chunk_size=1)), None))

    @contextmanager
    def write(self, file_id: str) -> Iterator[BinaryIO]:
        import obstore

        writer = self._answered(
            lambda: obstore.open_writer(
                self._patient, file_key(file_id), buffer_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
            )
        )
        raw = _PartWriter(lambda data: self._answered(lambda: writer.write(data)))
        stream = io.BufferedWriter(raw, READ_BYTES)
        try:
            yield cast("BinaryIO", stream)  # what BinaryIO promises, apart from a descriptor
            stream.flush()
            failpoint(Point.FILE_WRITTEN)
            self._answered(writer.close)
            failpoint(Point.FILE_RENAMED)
        except BaseException as error:
            _abort(writer, error)
            raise
        finally:
            raw.is_open = False

    def join(self, file_id: str, part_ids: Sequence[str], digest: Hash | None = None) -> None:
        """One part is copied by the server. Several go through this process: no common API joins objects of any size."""
        import obstore

        if len(part_ids) == 1 and digest is None:
            source, target = file_key(part_ids[0]), file_key(file_id)
            self._answered(lambda: obstore.copy(self._patient, source, target))
            return
        with self.write(file_id) as stream:
            for part_id in part_ids:
                for chunk in self.read(part_id, 0, self._size(part_id)):
                    if digest is not None:
                        digest.update(chunk)
                    stream.write(chunk)

    def open(self, file_id: str) -> BinaryIO:
        """The content is copied to a temporary file without a name, since a request for each line would be slow."""
        copy = tempfile.TemporaryFile(prefix="millrace-")  # noqa: SIM115 - the caller closes it
        try:
            for chunk in self.read(file_id, 0, self._size(file_id)):
                copy.write(chunk)
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
        return copy

    def read(self, file_id: str, start: int, end: int) -> Iterator[bytes]:
        if start >= end:
            self._size(file_id)
            return iter(())
        return self._chunks(file_id, start, end, self._range(file_id, start, end))

    def _chunks(self, file_id: str, start: int, end: int, part: memoryview) -> Iterator[bytes]:
        """Yield a part in chunks, then ask for the next: a slow reader holds no connection."""
        while True:
            for offset in range(0, len(part), READ_BYTES):
                yield bytes(part[offset : offset + READ_BYTES])
            start += len(part)
            if start >= end or not part:
                return
            part = self._range(file_id, start, end)

    def _range(self, file_id: str, start: int, end: int) -> memoryview:
        import obstore

        end = min(end, start + _PART_BYTES)
        return memoryview(
            self._answered(lambda: obstore.get_range(self._patient, file_key(file_id), start=start, end=end))
        )

    def exists(self, file_id: str) -> bool:
        try:
            self._size(file_id)
        except FileNotFoundError:
            return False
        return True

    def _size(self, file_id: str) -> int:
        import obstore

        try:
            return self._answered(lambda: obstore.head(self._patient, file_key(file_id)))["size"]
        except FileNotFoundError:
            self.ping()  # the answer has no body, which would tell a missing bucket from a missing object
            raise

    def delete(self, *file_ids: str) -> None:
        self._delete_keys([file_key(file_id) for file_id in file_ids])

    def _delete_keys(self, keys: list[str]) -> None:
        import obstore

        if not keys:
            return
        try:
            self._answered(lambda: obstore.delete(self._quick, keys))
        except FileNotFoundError:  # some clouds report a missing object, and leave those after it
            if len(keys) > 1:
                for key in keys:
                    self._delete_keys([key])

    def remove_leftovers(self, older_than_seconds: float) -> int:  # noqa: ARG002 - there are none that can be listed
        return 0

    def old_ids(self, bucket: int, older_than_seconds: float) -> list[str]:
        import obstore

        prefix, before = bucket_name(bucket), datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        found = self._answered(lambda: obstore.list(self._quick, prefix, chunk_size=1000).collect())
        names = (entry["path"].rpartition("/")[2] for entry in found if entry["last_modified"] < before)
        return [name for name in names if is_id(name)]


class _PartWriter(io.RawIOBase):
    """The unbuffered end of a stream: passes bytes on, and counts them. Once closed or aborted it takes bytes and drops them."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write = write
        self._size = 0
        self.is_open = True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:  # Any: a buffer; the type of it is not the same in all versions of Python
        content = bytes(data)
        if self.is_open:
            self._write(content)
        self._size += len(content)
        return len(content)


def _abort(writer: WritableFile, error: BaseException) -> None:
    """Remove the parts that have arrived; where that fails, the lifecycle rule of the bucket does."""
    with suppress(Exception):  # `error` is on its way
        writer.__exit__(type(error), error, error.__traceback__)
