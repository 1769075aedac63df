"""Relations of an id: the request, batch and shard behind a job, a batch, a response or a file. For a search of logs."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import func, null, or_, select

from db.query import Query
from db.tables import Batch, Job, Response


class Relations(NamedTuple):
    """The ids that log lines about a job or batch may have; `origin_json` is a `core.telemetry.origin.Origin`."""

    job_id: str | None
    batch_id: str | None
    shard_id: str | None
    origin_json: str | None


def relations_of_job(job_id: str) -> Query[Relations]:
    """Find a job, or that of a response, with what it belongs to."""
    of_response = select(Response.job_id).where(Response.id == job_id)
    statement = (
        select(
            Job.id.label("job_id"),
            Job.batch_id,
            Job.shard_id,
            func.coalesce(Job.origin_json, Batch.origin_json).label("origin_json"),
        )
        .outerjoin(Batch, Batch.id == Job.batch_id)
        .where(or_(Job.id == job_id, Job.id.in_(of_response)))
    )
    return Query(statement, Relations)


def relations_of_batch(object_id: str, limit: int) -> Query[Relations]:
    """Find a batch, or the newest ones that have this file as input, output, errors or table."""
    files = (Batch.input_file_id, Batch.output_file_id, Batch.error_file_id, Batch.table_file_id)
    statement = (
        select(
            null().label("job_id"),
            Batch.id.label("batch_id"),
            null().label("shard_id"),
            Batch.origin_json,
        )
        .where(or_(Batch.id == object_id, *(file == object_id for file in files)))
        .order_by(Batch.id.desc())
        .limit(limit)
    )
    return Query(statement, Relations)
