"""Functions that insert rows for tests."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from core import ids
from core.states import JobState
from db import batches, files, jobs
from db.bulk_insert import LineRow, ShardRow, copy_lines, copy_shards
from db.tables import DEFAULT_TENANT

ENDPOINT = "/v1/chat/completions"


def make_job(connection: Connection, model: str = "fake", body: str = "{}", endpoint: str = ENDPOINT) -> str:
    job_id = ids.new_id(ids.CHAT)
    jobs.insert_job(job_id, DEFAULT_TENANT, model, body, endpoint=endpoint).fetch_one(connection)
    return job_id


def make_file(connection: Connection, purpose: str = "batch", size: int = 1) -> str:
    file_id = ids.new_id(ids.FILE)
    connection.execute(
        files.add_file(id=file_id, tenant_id=DEFAULT_TENANT, purpose=purpose, filename="in.jsonl", bytes=size)
    )
    return file_id


def make_batch(
    connection: Connection, *, file_id: str | None = None, window_seconds: int = 86400, endpoint: str = ENDPOINT
) -> str:
    """Insert a batch that waits for prepare."""
    return str(
        batches.insert_batch(
            id=ids.new_id(ids.BATCH),
            tenant_id=DEFAULT_TENANT,
            endpoint=endpoint,
            input_file_id=file_id or make_file(connection),
            completion_window="24h",
            window_seconds=window_seconds,
        )
        .fetch_one(connection)
        .id
    )


def make_running_batch(
    connection: Connection,
    shard_sizes: Sequence[int] = (2,),
    *,
    model: str = "fake",
    window_seconds: int = 86400,
    options: str = "",
    endpoint: str = ENDPOINT,
) -> tuple[str, list[str]]:
    """Insert a batch after its prepare; returns its id and those of its shards. Lines are numbered from 1, with equal bodies.

    `options` is JSON text that is added to their bodies.
    """
    batch_id = make_batch(connection, window_seconds=window_seconds, endpoint=endpoint)
    shards = [
        ShardRow(
            ids.new_id(ids.SHARD), batch_id, DEFAULT_TENANT, model, position, size, sum(shard_sizes[:position]) + 1
        )
        for position, size in enumerate(shard_sizes)
    ]
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "hello"}}]{options}}}'
    number = 0
    with copy_lines(connection) as copy:
        for shard in shards:
            for _ in range(shard.lines):
                number += 1
                copy.write_row(
                    LineRow(
                        id=ids.new_id(ids.BATCH_LINE),
                        tenant_id=DEFAULT_TENANT,
                        batch_id=batch_id,
                        shard_id=shard.id,
                        position=number,
                        line=number,
                        custom_id=f"line-{number}",
                        model=model,
                        state=JobState.QUEUED,
                        body=body,
                        problem=None,
                        finished_at=None,
                        endpoint=endpoint,
                    )
                )
    copy_shards(connection, shards)
    batches.start(batch_id, lines=number, lines_failed=0, model=model).fetch_one(connection)
    return batch_id, [shard.id for shard in shards]
