"""A file store in a directory: what it has beside the behaviours of every store (tests/service/core)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from core import ids
from core.files.directory import DirectoryStore
from core.files.file_store import BUCKETS, FileStoreUnavailable


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "files")


def everything_in(store: DirectoryStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_content_is_private(store: DirectoryStore) -> None:
    file_id = ids.new_id(ids.FILE)
    with store.write(file_id):
        pass
    assert store.path(file_id).stat().st_mode & 0o777 == 0o600
    assert store.root.stat().st_mode & 0o777 == 0o700


def test_files_of_a_dead_writer_are_removed_later(store: DirectoryStore) -> None:
    file_id = ids.new_id(ids.FILE)
    left = store.path(file_id).with_name(f"{file_id}.1.part")
    left.parent.mkdir()
    left.write_bytes(b"half")
    assert store.remove_leftovers(3600) == 0
    os.utime(left, (0, 0))
    assert store.remove_leftovers(3600) == 1
    assert everything_in(store) == []


def test_names_that_are_no_ids_never_become_paths(store: DirectoryStore) -> None:
    with pytest.raises(AssertionError):
        store.path("../../etc/passwd")


def make(store: DirectoryStore, content: bytes) -> str:
    file_id = ids.new_id(ids.PART)
    with store.write(file_id) as stream:
        stream.write(content)
    return file_id


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_files_are_joined_where_the_kernel_cannot_copy(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int
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


def test_content_is_called_old_by_the_time_it_was_written(store: DirectoryStore) -> None:
    old, fresh = make(store, b"x"), make(store, b"x")
    os.utime(store.path(old), (0, 0))
    found = [name for bucket in range(BUCKETS) for name in store.old_ids(bucket, 3600)]
    assert old in found
    assert fresh not in found


def test_a_directory_that_cannot_be_used_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileStoreUnavailable, match=r"file/below cannot be used: .* MILLRACE_FILES_DIR"):
        DirectoryStore(tmp_path / "file" / "below")
    store = DirectoryStore(tmp_path / "files")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(FileStoreUnavailable, match="nothing can be written to it"):
        store.check()
