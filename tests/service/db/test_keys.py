"""Sums that count against limits: open rows of a key and a tenant."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text, update

from core import ids
from core.states import BatchState
from db import batches, files, jobs, keys, uploads
from db.tables import DEFAULT_TENANT, Batch
from tests.support.rows import make_batch, make_running_batch


def queue(connection: Connection, key_id: str, body: str) -> str:
    job_id = ids.new_id(ids.CHAT)
    jobs.insert_job(job_id, DEFAULT_TENANT, "fake", body, key_id).fetch_one(connection)
    return job_id


def plan(connection: Connection, statement: Any) -> str:
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    compiled = statement.compile(connection, compile_kwargs={"literal_binds": True})
    return "\n".join(connection.execute(text(f"EXPLAIN {compiled}")).scalars())


def test_bytes_of_open_jobs_are_those_of_their_key_until_they_end(connection: Connection) -> None:
    ended = queue(connection, "key_a", "12345678")
    queue(connection, "key_a", "1234")
    queue(connection, "key_b", "1234567890")
    assert connection.execute(keys.queued_in_jobs("key_a")).scalar_one() == 12
    jobs.cancel_queued_job(ended).fetch_one(connection)
    assert connection.execute(keys.queued_in_jobs("key_a")).scalar_one() == 4
    assert connection.execute(keys.queued_in_jobs("key_c")).scalar_one() == 0


def test_tokens_of_open_batches_are_those_of_their_key(connection: Connection) -> None:
    for key_id, tokens in (("key_a", 5), ("key_a", 7), ("key_b", 100)):
        batch_id = make_batch(connection)
        connection.execute(update(Batch).where(Batch.id == batch_id).values(key_id=key_id))
        batches.start(batch_id, lines=1, lines_failed=0, model=None, queued_tokens=tokens).fetch_one(connection)
    assert connection.execute(keys.queued_in_batches(DEFAULT_TENANT, "key_a")).scalar_one() == 12


def test_batches_and_lines_of_a_tenant_count_until_they_end(connection: Connection) -> None:
    make_running_batch(connection, (2, 3))
    waiting = make_batch(connection)
    assert keys.open_batches(DEFAULT_TENANT).fetch_one(connection) == (None, None, 2, 5)
    batches.move(waiting, BatchState.FAILED).fetch_one(connection)
    assert keys.open_batches(DEFAULT_TENANT).fetch_one(connection) == (None, None, 1, 5)


def test_sums_for_limits_use_indexes(connection: Connection) -> None:
    assert "ix_jobs_key_open" in plan(connection, keys.queued_in_jobs("key_a"))
    assert "ix_batches_tenant_open" in plan(connection, keys.open_batches("default").statement)
    assert "ix_batches_tenant_open" in plan(connection, keys.queued_in_batches("default", "key_a"))
    assert "ix_uploads_tenant_pending" in plan(connection, uploads.pending_bytes("default"))
    stored = plan(connection, files.stored_bytes("default", 1).statement)
    assert "ix_files_tenant_id" in stored
    assert "ix_uploads_tenant_pending" in stored
