"""Retention: deletes files and uploads past their time, old idempotency keys, silent workers, and bytes without a row.

Bytes are deleted before their rows, so a crash in between leaves a row that is swept again, and never bytes without a row.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from core import ids
from core.failpoints import Point, failpoint
from core.files.file_store import BUCKETS, FileStoreUnavailable
from db import files, idempotency, model_requests, uploads, workers
from workers.context import ClerkContext

log = structlog.get_logger()

_PAGE: Final = 500
_LEFTOVER_SECONDS: Final = 7200  # far longer than from a file's last byte to its row, even if a clock jumps by an hour


class Retention:
    """Sweeps the file store and its rows. Each sweep checks one bucket of the store for orphans."""

    def __init__(self, context: ClerkContext) -> None:
        self._context = context
        self._bucket = 0

    def sweep(self, *, has_rows: bool = True) -> None:
        """Sweep once; every step is idempotent. Without `has_rows`, no row is past its time."""
        try:
            if has_rows:
                self._sweep_rows()
            if self._bucket == 0:  # in each pass over the store, since it looks at all of it
                self._context.files.remove_leftovers(_LEFTOVER_SECONDS)
            self.sweep_orphans(self._bucket)
        except FileStoreUnavailable as error:  # all else was swept; the files are, once the store is back
            log.warning("files_not_swept", reason=error.problem)
        self._bucket = (self._bucket + 1) % BUCKETS

    def _sweep_rows(self) -> None:
        self._sweep_keys()
        self._sweep_workers()
        self._sweep_files()
        self._sweep_uploads()

    def _sweep_files(self) -> None:
        """Hide files past their time, and delete hidden files that no open batch reads."""
        context = self._context
        with context.database.begin() as connection:
            connection.execute(files.hide_expired_files())
            removable = list(connection.execute(files.removable_files(_PAGE)).scalars())
            context.files.delete(*removable)
            if removable:
                failpoint(Point.RETENTION_FILE)
            connection.execute(files.delete_files(removable))

    def _sweep_uploads(self) -> None:
        """Expire uploads past their time, and delete the parts of uploads that have ended."""
        context = self._context
        with context.database.begin() as connection:
            connection.execute(uploads.expire_uploads())
            removable = list(connection.execute(uploads.removable_parts(_PAGE)).scalars())
            context.files.delete(*removable)
            if removable:
                failpoint(Point.RETENTION_PART)
            connection.execute(uploads.delete_parts(removable))
            connection.execute(uploads.delete_old_uploads(timedelta(days=context.settings.file_days)))

    def _sweep_keys(self) -> None:
        kept = timedelta(hours=self._context.settings.idempotency_hours)
        with self._context.database.begin() as connection:
            connection.execute(idempotency.delete_old_keys(kept))

    def _sweep_workers(self) -> None:
        with self._context.database.begin() as connection:
            connection.execute(workers.delete_silent_workers())
            connection.execute(model_requests.delete_old_requests())

    def sweep_orphans(self, bucket: int) -> None:
        """Delete old content without a row: its writer ended before the commit."""
        old = self._context.files.old_ids(bucket, _LEFTOVER_SECONDS)
        stored_files = [name for name in old if name.startswith(ids.FILE)]
        parts = [name for name in old if name.startswith(ids.PART)]
        if not stored_files and not parts:
            return
        with self._context.database.begin() as connection:
            stored = {*connection.execute(files.known_files(stored_files)).scalars()}
            stored |= {*connection.execute(uploads.known_parts(parts)).scalars()}
        if orphans := {*stored_files, *parts} - stored:
            failpoint(Point.RETENTION_ORPHAN)
            self._context.files.delete(*orphans)
