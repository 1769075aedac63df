"""Findings about the file store: that it can be used from this host, and that all hosts use the same one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from cli.doctor.findings import Finding, Level
from core.errors import ConfigError

if TYPE_CHECKING:
    from core.settings import Settings


def file_store(settings: Settings) -> Finding:
    """Check that this host can use the file store. A directory is not created."""
    from core.files.file_store import FileStoreUnavailable
    from core.files.open_store import open_file_store

    if (root := settings.files_root) is not None:
        return _directory(root)
    try:
        store = open_file_store(settings)
        store.check()
    except FileStoreUnavailable as failure:
        return Finding(Level.BAD, "files", failure.problem, failure.advice)
    except ConfigError as error:
        return Finding(Level.BAD, "files", str(error), "Install the extra on every host with an api or a clerk.")
    return Finding(Level.OK, "files", f"{store.place} can be written to")


def newest_file(connection: Connection, settings: Settings) -> list[Finding]:
    """Find the newest file of the database in the store; if it is not there, another host uses another store."""
    from core.errors import MillraceError
    from core.files.open_store import open_file_store

    query = "SELECT id FROM files WHERE deleted_at IS NULL ORDER BY created_at DESC LIMIT 1"
    newest = connection.execute(text(query)).scalar_one_or_none()
    if newest is None:
        return []
    root = settings.files_root
    place = settings.files_url if root is None else root
    try:
        if (root is None or root.is_dir()) and open_file_store(settings).exists(newest):
            return [Finding(Level.OK, "newest file", f"{newest} is in {place}")]
    except MillraceError:
        return []  # another finding has the reason
    message = f"{newest} is not in {place}: another host writes to another place"
    advice = "Every api and clerk needs the same MILLRACE_FILES_URL, or the same MILLRACE_FILES_DIR on a shared disk."
    return [Finding(Level.BAD, "newest file", message, advice)]


def _directory(root: Path) -> Finding:
    place = next(path for path in (root.resolve(), *root.resolve().parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        advice = "Change its owner to the user of Millrace, or choose another folder with MILLRACE_FILES_DIR."
        return Finding(Level.BAD, "files", f"nothing can be written to {root}", advice)
    return Finding(Level.OK, "files", f"{root} can be written to")
