"""Uploads: one end, visible to their own tenant only."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Connection, func, update

from db import uploads
from db.tables import DEFAULT_TENANT, Upload

HOUR = timedelta(hours=1)


def make_upload(connection: Connection, lifetime: timedelta = HOUR, upload_id: str = "upload_a") -> str:
    statement = uploads.insert_upload(
        lifetime=lifetime, id=upload_id, tenant_id=DEFAULT_TENANT, purpose="batch", filename="a.jsonl", mime_type="",
        bytes=7,
    )  # fmt: skip
    return statement.fetch_one(connection).id


def test_another_tenant_sees_no_upload(connection: Connection) -> None:
    upload_id = make_upload(connection)
    assert uploads.find_upload(upload_id, DEFAULT_TENANT).fetch_one(connection).status == "pending"
    assert uploads.find_upload(upload_id, "other").fetch_optional(connection) is None


def test_an_upload_ends_once(connection: Connection) -> None:
    upload_id = make_upload(connection)
    assert uploads.end_upload(upload_id, "completed", "file-a").fetch_one(connection).file_id == "file-a"
    assert uploads.end_upload(upload_id, "completed", "file-b").fetch_optional(connection) is None
    assert uploads.end_upload(upload_id, "cancelled").fetch_optional(connection) is None


@pytest.mark.parametrize("status", ["cancelled", "expired"])
def test_an_upload_that_ended_takes_no_parts(connection: Connection, status: str) -> None:
    upload_id = make_upload(connection)
    assert uploads.insert_part("part_a", upload_id, 3).fetch_one(connection).bytes == 3
    uploads.end_upload(upload_id, status).fetch_one(connection)
    assert uploads.insert_part("part_b", upload_id, 3).fetch_optional(connection) is None
    assert [row.id for row in connection.execute(uploads.removable_parts(10))] == ["part_a"]


def test_an_upload_past_its_time_takes_no_parts_even_before_the_sweep(connection: Connection) -> None:
    upload_id = make_upload(connection, lifetime=-HOUR)
    assert uploads.insert_part("part_a", upload_id, 3).fetch_optional(connection) is None
    assert [row.id for row in connection.execute(uploads.expire_uploads())] == [upload_id]


def test_pending_bytes_are_those_of_parts_whose_upload_may_still_be_completed(connection: Connection) -> None:
    one, two = make_upload(connection), make_upload(connection, upload_id="upload_b")
    for part_id, upload_id, size in (("part_a", one, 3), ("part_b", one, 4), ("part_c", two, 5)):
        uploads.insert_part(part_id, upload_id, size).fetch_one(connection)
    assert connection.execute(uploads.pending_bytes(DEFAULT_TENANT)).scalar_one() == 12
    assert connection.execute(uploads.pending_bytes("other")).scalar_one() == 0
    uploads.end_upload(one, "cancelled").fetch_one(connection)
    assert connection.execute(uploads.pending_bytes(DEFAULT_TENANT)).scalar_one() == 5
    connection.execute(update(Upload).where(Upload.id == two).values(expires_at=func.now()))
    assert connection.execute(uploads.pending_bytes(DEFAULT_TENANT)).scalar_one() == 0


def test_an_upload_is_deleted_after_a_while_and_not_before_its_parts(connection: Connection) -> None:
    upload_id = make_upload(connection)
    uploads.insert_part("part_a", upload_id, 3).fetch_one(connection)
    uploads.end_upload(upload_id, "cancelled").fetch_one(connection)
    connection.execute(uploads.delete_old_uploads(-HOUR))
    assert uploads.find_upload(upload_id, DEFAULT_TENANT).fetch_optional(connection) is not None
    connection.execute(uploads.delete_parts(["part_a"]))
    connection.execute(uploads.delete_old_uploads(HOUR))
    assert uploads.find_upload(upload_id, DEFAULT_TENANT).fetch_optional(connection) is not None
    connection.execute(uploads.delete_old_uploads(-HOUR))
    assert uploads.find_upload(upload_id, DEFAULT_TENANT).fetch_optional(connection) is None
