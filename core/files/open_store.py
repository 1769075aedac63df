"""The file store that the settings name. Only the api and the clerk open it; a worker never needs it."""

from __future__ import annotations

from core.files.directory import DirectoryStore
from core.files.file_store import FileStore
from core.files.object_store import ObjectStore
from core.settings import Settings


def open_file_store(settings: Settings) -> FileStore:
    """Return the store. Raises FileStoreUnavailable, and the ConfigError of an extra that is not installed."""
    directory = settings.files_root
    if directory is not None:
        return DirectoryStore(directory)
    assert settings.files_url is not None, "there is a directory, or a URL"
    return ObjectStore(settings.files_url)
