"""Retention: expired objects and orphaned bytes are deleted, all others stay."""

from __future__ import annotations

import os
import time
from datetime import timedelta

from sqlalchemy import select, text, update

from core import ids
from core.files.file_store import BUCKETS
from db import files, idempotency, uploads
from db.tables import DEFAULT_TENANT, File, IdempotencyKey, Upload, UploadPart
from tests.support.stored import path_in
from workers.context import ClerkContext
from workers.maintenance.retention import Retention


def store(clerk: ClerkContext, prefix: str, *, is_old: bool = False) -> str:
    """Content without a row; returns its id."""
    name = ids.new_id(prefix)
    with clerk.files.write(name) as stream:
        stream.write(b"content")
    if is_old:
        os.utime(path_in(clerk.files, name), (0, 0))
    return name


def make_file(clerk: ClerkContext, **columns) -> str:
    file_id = store(clerk, ids.FILE, is_old=True)
    with clerk.database.begin() as connection:
        connection.execute(
            files.add_file(id=file_id, tenant_id=DEFAULT_TENANT, purpose="user_data", filename="a", bytes=7, **columns)
        )
    return file_id


def make_upload(clerk: ClerkContext, lifetime: timedelta = timedelta(hours=1)) -> tuple[str, str]:
    """An upload with one part."""
    upload_id, part_id = ids.new_id(ids.UPLOAD), store(clerk, ids.PART, is_old=True)
    with clerk.database.begin() as connection:
        new = uploads.insert_upload(
            lifetime=timedelta(hours=1), id=upload_id, tenant_id=DEFAULT_TENANT, purpose="user_data", filename="a",
            mime_type="", bytes=7,
        )  # fmt: skip
        new.fetch_one(connection)
        uploads.insert_part(part_id, upload_id, 7).fetch_one(connection)
        moved = Upload.created_at + lifetime
        connection.execute(update(Upload).where(Upload.id == upload_id).values(expires_at=moved))
    return upload_id, part_id


def sweep_everything(clerk: ClerkContext) -> None:
    retention = Retention(clerk)
    for _ in range(BUCKETS):
        retention.sweep()


def exists(clerk: ClerkContext, name: str) -> bool:
    return clerk.files.exists(name)


def test_an_expired_file_is_hidden_at_once_and_its_bytes_go_with_the_sweep(clerk: ClerkContext) -> None:
    kept, late = make_file(clerk), make_file(clerk)
    with clerk.database.begin() as connection:
        connection.execute(update(File).where(File.id == late).values(expires_at=text("now() - interval '1 s'")))
        assert files.find_file(late, DEFAULT_TENANT).fetch_optional(connection) is None
    assert exists(clerk, late)
    sweep_everything(clerk)
    assert not exists(clerk, late)
    assert exists(clerk, kept)


def test_parts_go_when_their_upload_has_ended_and_not_before(clerk: ClerkContext) -> None:
    _, waiting = make_upload(clerk)
    cancelled_id, cancelled = make_upload(clerk)
    expired_id, expired = make_upload(clerk, lifetime=timedelta(seconds=-1))
    with clerk.database.begin() as connection:
        uploads.end_upload(cancelled_id, "cancelled").fetch_one(connection)
    sweep_everything(clerk)
    assert [exists(clerk, part) for part in (waiting, cancelled, expired)] == [True, False, False]
    with clerk.database.begin() as connection:
        late = uploads.find_upload(expired_id, DEFAULT_TENANT).fetch_one(connection)
        assert late.status == "expired"
        assert connection.execute(select(UploadPart.id).where(UploadPart.upload_id == cancelled_id)).all() == []


def test_old_bytes_without_a_row_are_deleted_and_others_stay(clerk: ClerkContext) -> None:
    orphans = [store(clerk, ids.FILE, is_old=True), store(clerk, ids.PART, is_old=True)]
    fresh = [store(clerk, ids.FILE), store(clerk, ids.PART)]
    known = make_file(clerk)
    sweep_everything(clerk)
    assert not any(exists(clerk, name) for name in orphans)
    assert all(exists(clerk, name) for name in [*fresh, known])


def test_a_clock_that_jumps_an_hour_makes_no_leftovers(clerk: ClerkContext) -> None:
    """F44: the row of these bytes is not committed yet."""
    name, jumped = store(clerk, ids.FILE), time.time() - 3600 - 60
    path = path_in(clerk.files, name)
    unfinished = path.with_name(f"{name}.1.part")
    unfinished.write_bytes(b"half")
    for file in (path, unfinished):
        os.utime(file, (jumped, jumped))
    retention = Retention(clerk)
    retention.sweep()
    for bucket in range(BUCKETS):
        retention.sweep_orphans(bucket)
    assert path.exists()
    assert unfinished.exists()


def test_a_key_is_forgotten_after_its_time(clerk: ClerkContext) -> None:
    with clerk.database.begin() as connection:
        for key, age in (("young", "23 hours"), ("old", "25 hours")):
            claim(connection, key).one()
            past = text(f"now() - interval '{age}'")
            connection.execute(update(IdempotencyKey).where(IdempotencyKey.key == key).values(created_at=past))
    sweep_everything(clerk)
    with clerk.database.begin() as connection:
        assert idempotency.find_key(DEFAULT_TENANT, "old").fetch_optional(connection) is None
        assert idempotency.find_key(DEFAULT_TENANT, "young").fetch_one(connection).object_id == "made-1"
        connection.execute(idempotency.delete_key(DEFAULT_TENANT, "young", timedelta(0)))


def claim(connection, key: str, object_id: str = "made-1", *, lock_seconds: float = 60, fingerprint: str = "f"):
    return connection.execute(
        idempotency.claim_key(
            DEFAULT_TENANT,
            key,
            fingerprint=fingerprint,
            object_id=object_id,
            lock=timedelta(seconds=lock_seconds),
        )
    )
