"""Behaviours that every file store has: the same tests on a directory and on a real S3 server."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from core import ids
from core.files.directory import DirectoryStore
from core.files.file_store import BUCKETS, FileStore
from tests.service.core.conftest import BUCKET
from tests.support.s3_server import S3Server
from tests.support.stored import names_in

LARGE = 20_000_000  # three parts of an upload
HOUR = 3600


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    return DirectoryStore(tmp_path / "files") if request.param == "directory" else request.getfixturevalue("objects")


def stored(store: FileStore, request: pytest.FixtureRequest) -> set[str]:
    """The ids of everything in the store, finished or not."""
    if store.directory is not None:
        return names_in(store)
    server: S3Server = request.getfixturevalue("s3")
    return {key.rpartition("/")[2] for key in (*server.objects(BUCKET), *server.unfinished(BUCKET))}


def make(store: FileStore, content: bytes, kind: str = ids.PART) -> str:
    file_id = ids.new_id(kind)
    with store.write(file_id) as stream:
        stream.write(content)
    return file_id


def content_of(store: FileStore, file_id: str) -> bytes:
    with store.open(file_id) as stream:
        return stream.read()


def test_a_store_that_can_be_used_passes_its_check_and_keeps_nothing_of_it(
    store: FileStore, request: pytest.FixtureRequest
) -> None:
    store.check()
    store.ping()
    assert stored(store, request) == set()


@pytest.mark.parametrize("size", [0, 7, LARGE])
def test_a_written_file_can_be_read_and_deleted(store: FileStore, size: int) -> None:
    content = os.urandom(size)
    file_id = make(store, content)
    assert store.exists(file_id)
    assert content_of(store, file_id) == content
    assert b"".join(store.read(file_id, 0, size)) == content
    store.delete(file_id)
    store.delete(file_id)
    assert not store.exists(file_id)
    for read in (store.open, lambda gone: store.read(gone, 0, 1), lambda gone: store.read(gone, 0, 0)):
        with pytest.raises(FileNotFoundError):
            read(file_id)


def test_a_stream_counts_its_bytes(store: FileStore) -> None:
    with store.write(ids.new_id(ids.FILE)) as stream:
        stream.write(b"x" * 1000)
        stream.write(b"y")
        assert stream.tell() == 1001


@pytest.mark.parametrize(("start", "end"), [(0, 1), (7_999_999, 16_000_001), (LARGE - 1, LARGE), (3, 3)])
def test_a_range_is_read_as_asked(store: FileStore, start: int, end: int) -> None:
    content = os.urandom(LARGE)
    file_id = make(store, content)
    chunks = list(store.read(file_id, start, end))
    assert b"".join(chunks) == content[start:end]
    assert max(map(len, chunks), default=0) <= 1 << 20, "memory stays flat"


def test_an_opened_file_has_a_descriptor_and_can_be_read_in_any_order(store: FileStore) -> None:
    """Tables are read by child processes, and the lines of a batch in the order of its plan."""
    file_id = make(store, b"0123456789")
    with store.open(file_id) as stream:
        stream.seek(7)
        assert stream.read(2) == b"78"
        stream.seek(1)
        assert stream.read(2) == b"12"
        assert Path(f"/dev/fd/{stream.fileno()}").read_bytes() == b"0123456789"


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_failed_write_leaves_nothing(store: FileStore, size: int, request: pytest.FixtureRequest) -> None:
    with pytest.raises(RuntimeError), store.write(ids.new_id(ids.FILE)) as stream:
        stream.write(b"x" * size)
        raise RuntimeError
    assert stored(store, request) == set()


def test_a_file_does_not_exist_before_it_is_whole(store: FileStore) -> None:
    file_id = ids.new_id(ids.FILE)
    with store.write(file_id) as stream:
        stream.write(b"x" * LARGE)
        assert not store.exists(file_id)
    assert store.exists(file_id)


@pytest.mark.parametrize("is_hashed", [False, True])
def test_files_are_joined_in_the_order_asked(store: FileStore, is_hashed: bool) -> None:
    parts = [make(store, b"one" * 500_000), make(store, b"two"), make(store, b"")]
    digest = hashlib.md5() if is_hashed else None
    joined = ids.new_id(ids.FILE)
    store.join(joined, [parts[1], parts[0], parts[2]], digest)
    content = content_of(store, joined)
    assert content == b"two" + b"one" * 500_000
    if digest is not None:
        assert digest.hexdigest() == hashlib.md5(content).hexdigest()
    store.join(alone := ids.new_id(ids.FILE), [parts[1]])
    assert content_of(store, alone) == b"two"


def test_a_join_with_a_part_that_is_gone_leaves_nothing(store: FileStore, request: pytest.FixtureRequest) -> None:
    part = make(store, b"x")
    for parts in ([part, ids.new_id(ids.PART)], [ids.new_id(ids.PART)]):
        with pytest.raises(FileNotFoundError):
            store.join(ids.new_id(ids.FILE), parts)
    assert stored(store, request) == {part}


def test_many_files_are_deleted_at_once(store: FileStore, request: pytest.FixtureRequest) -> None:
    kept, *gone = (make(store, b"x") for _ in range(5))
    store.delete(*gone, ids.new_id(ids.FILE))
    store.delete()
    assert stored(store, request) == {kept}


def test_every_file_is_listed_in_one_bucket_once_it_is_old(store: FileStore) -> None:
    made = {make(store, b"x", ids.FILE), make(store, b"x")}
    assert not [name for bucket in range(BUCKETS) for name in store.old_ids(bucket, HOUR)]
    old = [name for bucket in range(BUCKETS) for name in store.old_ids(bucket, -HOUR)]
    assert sorted(old) == sorted(made)


def test_names_that_are_no_ids_never_become_keys(store: FileStore) -> None:
    for use in (store.open, store.exists, store.delete):
        with pytest.raises(AssertionError):
            use("../../etc/passwd")
