"""Submit, cancel, find and follow jobs: a row, then a ticket, then events over the relay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import pydantic_core
from sqlalchemy.ext.asyncio import AsyncEngine

from api.dependencies import from_app
from api.http.request_log import current_origin, note_ids
from api.live.follower import Follower
from api.live.submission import Submission
from api.services.model_states import ModelStates
from api.services.relay import Relay, Subscription
from api.services.ticket_sender import TicketSender
from core.failpoints import Point, failpoint
from core.queue.names import chat_queue
from core.telemetry import names, tracing
from core.telemetry.names import Kind
from core.telemetry.origin import Origin
from core.telemetry.tracing import origin_of
from db import jobs
from db.connections import async_transaction
from db.jobs import JobRow


@dataclass(frozen=True, slots=True, kw_only=True)
class JobClient:
    """The jobs of this service, for endpoints. Commits of the `async_commit` pool do not wait for the disk."""

    database: AsyncEngine
    async_commit: AsyncEngine
    tickets: TicketSender
    relay: Relay
    models: ModelStates
    keep_alive_seconds: float

    async def submit(self, submission: Submission, *, durable: bool) -> bool:
        """Insert the job and send its ticket; return whether the broker took it.

        A job that is not `durable` may be lost in a power cut, as the connection of its client is.
        """
        note_ids(job=submission.job_id)
        origin, queue = current_origin(), chat_queue(submission.model.name)
        sent = {names.MESSAGING_DESTINATION: queue, names.MESSAGE_ID: submission.job_id, names.JOB: submission.job_id}
        with tracing.span(f"send {queue}", origin, kind=Kind.PRODUCER, attributes=sent) as span:
            return await self._submit(submission, origin_of(span, origin), is_durable=durable)

    async def _submit(self, submission: Submission, origin: Origin, *, is_durable: bool) -> bool:
        insert = jobs.insert_job(
            submission.job_id,
            submission.tenant,
            submission.model.name,
            pydantic_core.to_json(submission.document).decode(),
            submission.caller.key_id,
            endpoint=submission.endpoint,
            origin_json=origin.to_json(),
        )
        pool = self.database if is_durable or submission.rows else self.async_commit
        async with async_transaction(pool, committed=Point.JOB_COMMITTED) as connection:
            await insert.async_fetch_one(connection)
            for row in submission.rows:
                await connection.execute(row)
        is_sent = await self.tickets.run_chat(submission.job_id, submission.model.name)
        failpoint(Point.JOB_TICKETED)
        await self.models.announce_job(submission.model.name)
        return is_sent

    async def cancel(self, job_id: str) -> None:
        """Cancel a queued job, or request its worker to stop; do nothing for one that has ended."""
        async with async_transaction(self.database, committed=Point.JOB_CANCELLED) as connection:
            ended = await jobs.cancel_queued_job(job_id).async_fetch_optional(connection)
            if ended is None:
                await connection.execute(jobs.request_cancel(job_id))
        if ended is not None and ended.has_events:  # a webhook subscribes to it
            await self.tickets.send(lambda tickets: tickets.deliver(job_id))
        await self.relay.send_cancel(job_id)

    async def find(self, job_id: str, tenant: str) -> JobRow | None:
        """The row of a tenant's job, if it exists."""
        async with self.database.connect() as connection:
            return await jobs.find_job(job_id, tenant).async_fetch_optional(connection)

    def follower(self, subscription: Subscription, tenant: str, *, next_seq: int = 0) -> Follower:
        """A follower of the subscription's job, from frame `next_seq` on."""
        find = partial(jobs.find_job, subscription.job_id, tenant)
        return Follower(self.database, subscription, find, next_seq=next_seq, silence_seconds=self.keep_alive_seconds)


JobClientDep = Annotated[JobClient, from_app("jobs")]
