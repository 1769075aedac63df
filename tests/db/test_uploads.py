"""An upload ends once, for its own tenant."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Connection

from db import uploads
from db.tables import DEFAULT_TENANT

HOUR = timedelta(hours=1)


def make_upload(connection: Connection, lifetime: timedelta = HOUR) -> str:
    statement = uploads.insert_upload(
        lifetime=lifetime, id="upload_a", tenant_id=DEFAULT_TENANT, purpose="batch", filename="a.jsonl", mime_type="",
        bytes=7,
    )  # fmt: skip
    return str(connection.execute(statement).one().id)


def test_another_tenant_sees_no_upload(connection: Connection) -> None:
    upload_id = make_upload(connection)
    assert connection.execute(uploads.find_upload(upload_id, DEFAULT_TENANT)).one().status == "pending"
    assert connection.execute(uploads.find_upload(upload_id, "other")).one_or_none() is None


def test_an_upload_ends_once(connection: Connection) -> None:
    upload_id = make_upload(connection)
    assert connection.execute(uploads.end_upload(upload_id, "completed", "file-a")).one().file_id == "file-a"
    assert connection.execute(uploads.end_upload(upload_id, "completed", "file-b")).one_or_none() is None
    assert connection.execute(uploads.end_upload(upload_id, "cancelled")).one_or_none() is None


@pytest.mark.parametrize("status", ["cancelled", "expired"])
def test_an_upload_that_ended_takes_no_parts(connection: Connection, status: str) -> None:
    upload_id = make_upload(connection)
    assert connection.execute(uploads.insert_part("part_a", upload_id, 3)).one().bytes == 3
    connection.execute(uploads.end_upload(upload_id, status))
    assert connection.execute(uploads.insert_part("part_b", upload_id, 3)).one_or_none() is None
    assert [row.id for row in connection.execute(uploads.removable_parts(10))] == ["part_a"]


def test_an_upload_past_its_time_takes_no_parts_even_before_the_sweep(connection: Connection) -> None:
    upload_id = make_upload(connection, lifetime=-HOUR)
    assert connection.execute(uploads.insert_part("part_a", upload_id, 3)).one_or_none() is None
    assert [row.id for row in connection.execute(uploads.expire_uploads())] == [upload_id]


def test_an_upload_is_remembered_for_a_while_and_not_before_its_parts_are_gone(connection: Connection) -> None:
    upload_id = make_upload(connection)
    connection.execute(uploads.insert_part("part_a", upload_id, 3))
    connection.execute(uploads.end_upload(upload_id, "cancelled"))
    connection.execute(uploads.forget_old_uploads(-HOUR))
    assert connection.execute(uploads.find_upload(upload_id, DEFAULT_TENANT)).one_or_none() is not None
    connection.execute(uploads.forget_parts(["part_a"]))
    connection.execute(uploads.forget_old_uploads(HOUR))
    assert connection.execute(uploads.find_upload(upload_id, DEFAULT_TENANT)).one_or_none() is not None
    connection.execute(uploads.forget_old_uploads(-HOUR))
    assert connection.execute(uploads.find_upload(upload_id, DEFAULT_TENANT)).one_or_none() is None
