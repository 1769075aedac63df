"""Storage of a tenant: its visible files, and the announced bytes of open uploads."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, func, update

from core.states import BatchState
from db import files, keys, uploads
from db.tables import DEFAULT_TENANT, Batch, File
from tests.support.rows import make_batch, make_file


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


def test_the_table_of_a_batch_expires_with_the_results_and_no_earlier(connection: Connection) -> None:
    table, output = make_file(connection, "user_data"), make_file(connection, "batch_output")
    batch_id = make_batch(connection, file_id=make_file(connection))
    mapped = {"table_file_id": table, "mapping_json": "{}"}
    connection.execute(update(Batch).where(Batch.id == batch_id).values(mapped))
    past = func.now() - timedelta(seconds=1)
    connection.execute(update(File).where(File.id == table).values(expires_at=past))

    def hidden() -> list[str]:
        return list(connection.execute(files.hide_expired_files()).scalars())

    assert hidden() == [], "the batch runs"
    ended = {"status": BatchState.COMPLETED, "completed_at": func.now(), "output_file_id": output}
    connection.execute(update(Batch).where(Batch.id == batch_id).values(ended))
    assert hidden() == [], "its results are there"
    assert connection.execute(files.table_name(table)).scalar_one() == "in.jsonl"
    connection.execute(update(File).where(File.id == output).values(expires_at=past))
    assert sorted(hidden()) == sorted([table, output])
    assert connection.execute(files.table_name(table)).scalar_one_or_none() is None


def test_a_table_that_its_owner_deletes_is_gone_at_once(connection: Connection) -> None:
    table = make_file(connection, "user_data")
    batch_id = make_batch(connection, file_id=make_file(connection))
    connection.execute(update(Batch).where(Batch.id == batch_id).values(table_file_id=table, mapping_json="{}"))
    connection.execute(files.hide_file(table, DEFAULT_TENANT)).one()
    assert connection.execute(files.table_name(table)).scalar_one_or_none() is None
    assert list(connection.execute(files.removable_files(10)).scalars()) == [table]
