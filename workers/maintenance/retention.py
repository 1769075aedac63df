"""Retention: what nobody needs any more goes. Files and uploads past their time, keys, bytes without a row.

Bytes go before their rows, so that a crash between leaves a row that is swept again, and never bytes nobody knows of.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from core import ids
from core.failpoints import Point, failpoint
from core.file_store import BUCKETS
from db import files, idempotency, uploads, workers
from workers.context import ClerkContext

_PAGE: Final = 500
_LEFTOVER_SECONDS: Final = 7200  # far longer than from a file's last byte to its row, also when a clock jumps an hour


class Retention:
    """Sweeps of the file store and its rows; one bucket of it is looked through for orphans each time."""

    def __init__(self, context: ClerkContext) -> None:
        self._context = context
        self._bucket = 0

    def sweep(self) -> None:
        """Once; every step is idempotent."""
        self._sweep_files()
        self._sweep_uploads()
        self._sweep_keys()
        self._sweep_workers()
        self._context.files.remove_leftovers(_LEFTOVER_SECONDS)
        self.sweep_orphans(self._bucket)
        self._bucket = (self._bucket + 1) % BUCKETS

    def _sweep_files(self) -> None:
        """Files past their time, and bytes of hidden ones that no open batch reads."""
        context = self._context
        with context.database.begin() as connection:
            connection.execute(files.hide_expired_files())
            gone = list(connection.execute(files.removable_files(_PAGE)).scalars())
            for file_id in gone:
                context.files.delete(file_id)
                failpoint(Point.RETENTION_FILE)
            connection.execute(files.delete_files(gone))

    def _sweep_uploads(self) -> None:
        """Uploads past their time, and parts of those that have ended."""
        context = self._context
        with context.database.begin() as connection:
            connection.execute(uploads.expire_uploads())
            gone = list(connection.execute(uploads.removable_parts(_PAGE)).scalars())
            for part_id in gone:
                context.files.delete(part_id)
                failpoint(Point.RETENTION_PART)
            connection.execute(uploads.delete_parts(gone))
            connection.execute(uploads.delete_old_uploads(timedelta(days=context.settings.file_days)))

    def _sweep_keys(self) -> None:
        kept = timedelta(hours=self._context.settings.idempotency_hours)
        with self._context.database.begin() as connection:
            connection.execute(idempotency.delete_old_keys(kept))

    def _sweep_workers(self) -> None:
        with self._context.database.begin() as connection:
            connection.execute(workers.delete_silent_workers())

    def sweep_orphans(self, bucket: int) -> None:
        """Content of a writer that died before its row was there."""
        old = self._context.files.old_ids(bucket, _LEFTOVER_SECONDS)
        stored_files = [name for name in old if name.startswith(ids.FILE)]
        parts = [name for name in old if name.startswith(ids.PART)]
        if not stored_files and not parts:
            return
        with self._context.database.begin() as connection:
            known = {*connection.execute(files.known_files(stored_files)).scalars()}
            known |= {*connection.execute(uploads.known_parts(parts)).scalars()}
        for orphan in {*stored_files, *parts} - known:
            failpoint(Point.RETENTION_ORPHAN)
            self._context.files.delete(orphan)
