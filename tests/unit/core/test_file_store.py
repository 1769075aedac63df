from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from core import ids
from core.file_store import BUCKETS, FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "files")


def everything_in(store: FileStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_a_written_file_can_be_read_and_deleted(store: FileStore) -> None:
    file_id = ids.new_id(ids.FILE)
    with store.write(file_id) as stream:
        stream.write(b"content")
    with store.open(file_id) as stream:
        assert stream.read() == b"content"
    assert store.size(file_id) == 7
    store.delete(file_id)
    store.delete(file_id)
    with pytest.raises(FileNotFoundError):
        store.open(file_id)


def test_a_failed_write_leaves_nothing(store: FileStore) -> None:
    with pytest.raises(RuntimeError), store.write(ids.new_id(ids.FILE)) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert everything_in(store) == []


def test_a_file_does_not_exist_before_it_is_whole(store: FileStore) -> None:
    file_id = ids.new_id(ids.FILE)
    with store.write(file_id) as stream:
        stream.write(b"half")
        assert not store.path(file_id).exists()


def test_content_is_private(store: FileStore) -> None:
    file_id = ids.new_id(ids.FILE)
    with store.write(file_id):
        pass
    assert store.path(file_id).stat().st_mode & 0o777 == 0o600
    assert store.root.stat().st_mode & 0o777 == 0o700


def test_files_of_a_dead_writer_are_removed_later(store: FileStore) -> None:
    file_id = ids.new_id(ids.FILE)
    left = store.path(file_id).with_name(f"{file_id}.1.part")
    left.parent.mkdir()
    left.write_bytes(b"half")
    assert store.remove_leftovers(3600) == 0
    os.utime(left, (0, 0))
    assert store.remove_leftovers(3600) == 1
    assert everything_in(store) == []


def test_names_that_are_no_ids_never_become_paths(store: FileStore) -> None:
    with pytest.raises(AssertionError):
        store.path("../../etc/passwd")


def make(store: FileStore, content: bytes) -> str:
    file_id = ids.new_id(ids.PART)
    with store.write(file_id) as stream:
        stream.write(content)
    return file_id


@pytest.mark.parametrize("is_hashed", [False, True])
def test_files_are_joined_in_the_order_asked(store: FileStore, is_hashed: bool) -> None:
    parts = [make(store, b"one" * 500_000), make(store, b"two"), make(store, b"")]
    digest = hashlib.md5() if is_hashed else None
    joined = ids.new_id(ids.FILE)
    store.join(joined, [parts[1], parts[0], parts[2]], digest)
    with store.open(joined) as stream:
        content = stream.read()
    assert content == b"two" + b"one" * 500_000
    if digest is not None:
        assert digest.hexdigest() == hashlib.md5(content).hexdigest()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_files_are_joined_where_the_kernel_cannot_copy(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls: list[int] = []
    copy = os.copy_file_range

    def copy_a_little_then_fail(source: int, target: int, count: int) -> int:
        calls.append(count)
        if len(calls) > 1:
            raise OSError(number, "not here")
        return copy(source, target, 2)

    monkeypatch.setattr(os, "copy_file_range", copy_a_little_then_fail)
    joined = ids.new_id(ids.FILE)
    store.join(joined, [make(store, b"first"), make(store, b"second")])
    with store.open(joined) as stream:
        assert stream.read() == b"firstsecond"
    assert len(calls) > 1


def test_a_join_with_a_part_that_is_gone_leaves_nothing(store: FileStore) -> None:
    part, joined = make(store, b"x"), ids.new_id(ids.FILE)
    with pytest.raises(FileNotFoundError):
        store.join(joined, [part, ids.new_id(ids.PART)])
    assert everything_in(store) == [store.path(part)]


def test_content_is_called_old_by_the_time_it_was_written(store: FileStore) -> None:
    old, fresh = make(store, b"x"), make(store, b"x")
    os.utime(store.path(old), (0, 0))
    found = [name for bucket in range(BUCKETS) for name in store.old_ids(bucket, 3600)]
    assert old in found
    assert fresh not in found
