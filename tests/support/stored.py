"""Look into a file store that is a directory."""

from __future__ import annotations

from pathlib import Path

from core.files.directory import DirectoryStore
from core.files.file_store import FileStore


def path_in(store: FileStore, file_id: str) -> Path:
    """Return the path of a file's content."""
    assert isinstance(store, DirectoryStore)
    return store.path(file_id)


def size_in(store: FileStore, file_id: str) -> int:
    """Return the size of a file's content in bytes."""
    return path_in(store, file_id).stat().st_size


def names_in(store: FileStore) -> set[str]:
    """Return the names of all files, whole or not."""
    assert store.directory is not None
    return {path.name for path in store.directory.rglob("*") if path.is_file()}
