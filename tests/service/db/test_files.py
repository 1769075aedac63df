"""Storage of a tenant: its visible files, and the announced bytes of open uploads."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, func, update

from db import files, keys, uploads
from db.tables import DEFAULT_TENANT, File
from tests.support.rows import make_file


def stored(
    connection: Connection, default_cap: int | None = 100, tenant: str = DEFAULT_TENANT
) -> tuple[int | None, int]:
    cap, used = files.stored_bytes(tenant, default_cap).fetch_one(connection)
    return cap, int(used)


def announce(connection: Connection, upload_id: str, size: int, lifetime: timedelta = timedelta(hours=1)) -> None:
    statement = uploads.insert_upload(
        lifetime=lifetime, id=upload_id, tenant_id=DEFAULT_TENANT, purpose="batch", filename="a.jsonl", mime_type="",
        bytes=size,
    )  # fmt: skip
    statement.fetch_one(connection)


def test_hidden_and_expired_files_and_those_of_others_are_not_counted(connection: Connection) -> None:
    connection.execute(keys.add_tenant("other"))
    kept, hidden, expired, theirs = (make_file(connection, size=size) for size in (1, 2, 4, 8))
    connection.execute(files.hide_file(hidden, DEFAULT_TENANT)).one()
    connection.execute(update(File).where(File.id == expired).values(expires_at=func.now()))
    connection.execute(update(File).where(File.id == theirs).values(tenant_id="other"))
    assert stored(connection) == (100, 1)
    assert stored(connection, tenant="other") == (100, 8)
    connection.execute(files.hide_file(kept, DEFAULT_TENANT)).one()
    assert stored(connection) == (100, 0)


def test_what_is_announced_counts_until_the_upload_has_ended_or_is_late(connection: Connection) -> None:
    announce(connection, "upload_a", 10)
    announce(connection, "upload_b", 20)
    announce(connection, "upload_c", 40, lifetime=-timedelta(hours=1))
    assert stored(connection) == (100, 30)
    uploads.end_upload("upload_a", "cancelled").fetch_one(connection)
    assert stored(connection) == (100, 20)


def test_a_tenants_own_limit_comes_before_the_default_and_without_any_nothing_is_counted(
    connection: Connection,
) -> None:
    make_file(connection, size=7)
    assert stored(connection, None) == (None, 0)
    connection.execute(keys.set_caps(DEFAULT_TENANT, open_batches=None, queued_lines=None, storage_bytes=50)).one()
    assert stored(connection, None) == stored(connection, 100) == (50, 7)
