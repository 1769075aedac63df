"""Downloads of large files over HTTP: resumed after a cut and by the next command, checked by size and hash.

The bytes so far are in `NAME.part`, and a file gets its own name only when it is whole. Other programs may take the lock of a
part; a second download of the same file is refused.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedRandom
from pathlib import Path
from typing import Final, Protocol

import httpx2

from cli.errors import CommandFailed
from cli.models.sources.source import shown_source
from core.memory_sizes import format_bytes

_TRIES: Final = 5  # without a new byte
_LONGEST_WAIT_SECONDS: Final = 60.0
_TIMEOUT: Final = httpx2.Timeout(30.0)
_BUSY: Final = (408, 425, 429, 500, 502, 503, 504)
Sleep = Callable[[float], None]


class Progress(Protocol):
    """Shows the bytes of a file as they arrive."""

    def start(self, name: str, total: int | None, done: int) -> None: ...
    def advance(self, num_bytes: int) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file at an address. `size` and `sha256` are those that its host has stated, if it has."""

    url: str
    name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    sha256: str | None = None


class Downloader:
    """Fetches files into a folder. Raises CommandFailed with one sentence."""

    def __init__(self, client: httpx2.Client, progress: Progress, sleep: Sleep | None = None) -> None:
        self._client = client
        self._progress = progress
        self._sleep = sleep or time.sleep

    def fetch(self, file: RemoteFile, folder: Path) -> Path:
        """Download a file, or the rest of it, and return its path."""
        path = folder / file.name
        if path.is_file():  # from an earlier command, which then failed at another file
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{file.name}.part") as part:
            try:
                self._complete(file, part)
            finally:
                self._progress.stop()
            _check_hash(file, part)
            part.path.rename(path)
            part.validator.unlink(missing_ok=True)
        return path

    def _complete(self, file: RemoteFile, part: _Part) -> None:
        """Append to the part until it is whole; a try that brings new bytes does not count."""
        failures = 0
        while True:
            before = part.size
            try:
                self._append(file, part)
                return
            except _TryAgain as failure:
                failures = failures + 1 if part.size <= before else 1
                if failures == _TRIES:
                    kept = f" {format_bytes(part.size)} are kept: the same command continues." if part.size else ""
                    raise CommandFailed(f"{file.name} could not be downloaded: {failure.reason}.{kept}") from None
                wait = 2.0 ** (failures - 1) if failure.wait_seconds is None else failure.wait_seconds
                self._sleep(min(wait, _LONGEST_WAIT_SECONDS))

    def _append(self, file: RemoteFile, part: _Part) -> None:
        if file.size is not None and part.size > file.size:
            part.clear()
        if file.size is not None and part.size == file.size:
            return
        headers = {"Accept-Encoding": "identity", **file.headers, **part.range_headers(file)}
        try:
            with self._client.stream(
                "GET", file.url, headers=headers, follow_redirects=True, timeout=_TIMEOUT
            ) as response:
                self._take(file, part, response)
        except httpx2.UnsupportedProtocol:
            raise CommandFailed(f"{shown_source(file.url)} leads to an address that is not http or https.") from None
        except httpx2.InvalidURL as error:
            raise CommandFailed(f"{shown_source(file.url)} is no valid address: {error}.") from None
        except httpx2.TooManyRedirects:
            raise CommandFailed(f"{shown_source(file.url)} redirects in a circle.") from None
        except httpx2.TransportError as error:
            raise _TryAgain(_reason(error)) from None

    def _take(self, file: RemoteFile, part: _Part, response: httpx2.Response) -> None:
        total = _total(response)
        if response.status_code == 416 and total == part.size:
            return
        if response.status_code == 416 or (response.status_code == 206 and _start(response) != part.size):
            part.clear()
            raise _TryAgain("the server sends other bytes than those that were asked for", 0)
        _check_status(file, response)
        if response.status_code == 200:
            part.clear()
        total = file.size if file.size is not None else total
        part.remember(response)
        _check_space(file, part, total)
        self._progress.start(file.name, total, part.size)
        for chunk in response.iter_raw():
            part.stream.write(chunk)
            self._progress.advance(len(chunk))
        if total is not None and part.size < total:
            raise _TryAgain("the connection was cut")
        if file.size is not None and part.size > file.size:
            part.clear()
            raise _TryAgain(f"the server sends more than the {file.size:,} bytes that it has announced")


class _TryAgain(Exception):
    """A try failed, and the next one may succeed, after this wait or one that grows."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        self.reason = reason
        self.wait_seconds = wait_seconds


@dataclass(frozen=True, slots=True)
class _Part:
    """A file that grows, and beside it the validator of the version that its bytes are from."""

    path: Path
    stream: BufferedRandom

    @property
    def size(self) -> int:
        return self.stream.seek(0, 2)

    @property
    def validator(self) -> Path:
        return self.path.with_suffix(".version")

    def clear(self) -> None:
        self.stream.seek(0)
        self.stream.truncate()

    def range_headers(self, file: RemoteFile) -> dict[str, str]:
        """Headers that ask for the rest. Without a hash to check, only of the same version; if none is known, for everything."""
        if not self.size:
            return {}
        wanted = {"Range": f"bytes={self.size}-"}
        if file.sha256:
            return wanted
        version = self.validator.read_text() if self.validator.is_file() else ""
        if not version:
            self.clear()
            return {}
        return wanted | {"If-Range": version}

    def remember(self, response: httpx2.Response) -> None:
        """Store the version of an answer, so that the next command can ask for the rest of it."""
        tag = response.headers.get("ETag", "")
        self.validator.write_text(
            tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
        )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CommandFailed(f"The disk of {folder} is full. Free some space; the same command continues.") from None
        raise CommandFailed(f"{error.filename or folder}: {error.strerror or error}.") from None


@contextmanager
def _locked(path: Path) -> Iterator[_Part]:
    with path.open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(f"{path.stem} is being downloaded by another command.") from None
        yield _Part(path, stream)


def _check_hash(file: RemoteFile, part: _Part) -> None:
    if file.sha256 is None:
        return
    part.stream.seek(0)
    if hashlib.file_digest(part.stream, "sha256").hexdigest() != file.sha256:
        part.path.unlink()
        raise CommandFailed(
            f"{file.name} has another checksum than its host states; the bytes were deleted. Download it again."
        )


def _check_space(file: RemoteFile, part: _Part, total: int | None) -> None:
    free = shutil.disk_usage(part.path.parent).free
    if total is not None and total - part.size > free:
        raise CommandFailed(
            f"There is no space for {file.name}: {format_bytes(total - part.size)} are missing, "
            f"and {part.path.parent} has {format_bytes(free)} free."
        )


def _check_status(file: RemoteFile, response: httpx2.Response) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in _BUSY:
        after = response.headers.get("Retry-After", "")
        raise _TryAgain(f"the server answers {status}", float(after) if after.isdigit() else None)
    advice = {
        401: "it needs credentials",
        403: "access is forbidden",
        404: "there is no such file",
        410: "the file has been removed",
    }.get(status, f"the server answers {status}")
    raise CommandFailed(f"{shown_source(file.url)} cannot be downloaded: {advice}.")


def _reason(error: httpx2.TransportError) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "the server does not answer in time"
    return "the server cannot be reached" if isinstance(error, httpx2.ConnectError) else "the connection was cut"


def _total(response: httpx2.Response) -> int | None:
    """Bytes of the whole file, as the answer states them."""
    ranged = response.headers.get("Content-Range", "").rpartition("/")[2]
    length = ranged or response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _start(response: httpx2.Response) -> int | None:
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None
