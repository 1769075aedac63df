from __future__ import annotations

import os
from pathlib import Path

import pytest

from core import ids
from core.files import FileStore


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


def test_what_a_dead_writer_left_is_removed_later(store: FileStore) -> None:
    file_id = ids.new_id(ids.FILE)
    left = store.path(file_id).with_name(f"{file_id}.1.part")
    left.parent.mkdir()
    left.write_bytes(b"half")
    assert store.remove_leftovers(3600) == 0
    os.utime(left, (0, 0))
    assert store.remove_leftovers(3600) == 1
    assert everything_in(store) == []


def test_names_that_are_not_ours_never_become_paths(store: FileStore) -> None:
    with pytest.raises(AssertionError):
        store.path("../../etc/passwd")
