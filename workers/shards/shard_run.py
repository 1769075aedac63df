"""One shard: feed its lines to the engine at batch priority, write results in groups under the fence, leave it.

Who takes one shard after the other is in `workers.shards.lanes`.
Lines that were running when their engine died are suspects: what becomes of them is in `workers.shards.poison`.
Lines with the same body run once where one answer serves them all (see `workers.shards.shard_progress`).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import msgspec
import structlog
from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError

from core.errors import Problem
from core.failpoints import Point, failpoint
from core.states import BatchState, ShardState
from core.strict_json import parse_json
from db import batches, jobs, shards
from db.shards import LineResult
from engine.process.client import EngineLost
from engine.types import Embedded, Failed, Finished, FinishReason, Priority
from workers.context import ServedModel, WorkerContext
from workers.generation.chat_response import engine_crash
from workers.generation.endpoints.base import EndpointAdapter, EngineOutcome, EngineRequest, EngineResult, RequestOrigin
from workers.generation.endpoints.registry import read_adapter
from workers.generation.job_stream import JobStream
from workers.generation.quarantine import as_exclusive
from workers.runtime.db_retry import retry_write
from workers.runtime.leases import Lease
from workers.shards.isolation import Isolation
from workers.shards.line_run import LineRun
from workers.shards.poison import LeaseLost, PoisonTracker
from workers.shards.shard_progress import Ended, ShardProgress

log = structlog.get_logger()


class ShardRun:
    """One claimed shard, from its first line to `leave`."""

    def __init__(
        self,
        context: WorkerContext,
        claim: Row[*tuple[Any, ...]],
        served: ServedModel,
        is_watched: Callable[[str], bool] = lambda _: False,
        isolation: Isolation | None = None,
    ) -> None:
        self._context = context
        self._served = served
        self.id: str = claim.id
        self._batch_id: str = claim.batch_id
        self._tenant_id: str = claim.tenant_id
        self._fence: int = claim.fence
        self._is_watched = is_watched
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # what to do on the lane's thread
        self._lease: Lease = context.leases.hold(self.id, served.model.name, self._fence, self.wake)
        self._endpoint: str = claim.endpoint
        self._key_id: str = claim.key_id
        self._lines: dict[str, LineRun] = {}
        self._progress = ShardProgress()
        self._suspicion = PoisonTracker(context, claim, self._progress, isolation or Isolation())
        self._oldest_result_at = 0.0
        self._is_leaving = False

    def wake(self) -> None:
        """Look at the lease and at `stop` again; callable from any thread."""
        self._inbox.put(lambda: None)

    def watch(self, line: str) -> None:
        """Somebody follows this line, if it is one of ours; callable from any thread."""
        if line in self._progress.bodies:
            self._inbox.put(partial(self._watch, line))

    def stop(self, *, abort: bool) -> None:
        """Begin no more lines; with `abort`, do not wait for the running ones."""
        self._is_leaving = self._is_leaving or abort
        self._progress.is_stopping = True
        self.wake()

    def run(self) -> None:
        """Until every line has ended, the batch is not wanted any more, or the lease is lost."""
        try:
            retry_write(lambda: self._suspicion.load(self._is_shared), lambda: not self._lease.is_lost)
            self._generate()
            self._leave()
        except LeaseLost:
            log.warning("shard_lost", shard=self.id, fence=self._fence)
        except SQLAlchemyError as error:  # the lease runs out, and somebody else goes on
            log.error("shard_abandoned", shard=self.id, reason=type(error).__name__)
        finally:
            self._cancel_running()
            self._suspicion.close()
            self._context.leases.drop(self._lease)

    def _generate(self) -> None:
        settings = self._context.settings
        window = max(2, self._served.slots * 2)
        while not self._progress.is_over() and not self._is_leaving:
            self._submit(window)
            self._receive(0.0 if self._is_due() else settings.commit_seconds)
            self._suspicion.save()
            self._check_lease()
            if self._is_due():
                self._commit()
        self._cancel_running()
        for line in list(self._progress.running):
            self._suspicion.stopped(line)
        self._suspicion.save()
        while self._progress.ended:
            self._commit()

    def _submit(self, window: int) -> None:
        if not self._context.leases.is_trusted(self._lease):
            return
        while (line := self._suspicion.begin(window)) is not None:
            exchange = self._read(self._progress.bodies[line])
            ended, before = partial(self._hand_over, line), self._lines.get(line)
            number = 0 if before is None else before.number + 1
            self._lines[line] = LineRun(exchange, self._served.engine, self._asks(line, exchange), ended, number=number)
            self._lines[line].begin()
            if self._is_watched(line):
                self._watch(line)

    def _hand_over(self, line: str, outcome: EngineOutcome) -> None:
        """Called in the engine client's thread."""
        self._inbox.put(partial(self._ended, line, outcome))

    def _watch(self, line: str) -> None:
        if line in self._progress.running:
            self._lines[line].watch(partial(self._teller, line))

    def _teller(self, line: str) -> JobStream:
        """A claim may run a line several times, once after each crash."""
        run = self._lines[line]
        attempt = self._fence << 8 | min(run.number, 255)
        frames = run.exchange.frames(self._served.head(line), is_watched=True)
        return JobStream(line, attempt, frames, self._context.publisher.publish)

    def _is_shared(self, body: str) -> bool:
        return self._context.settings.share_identical_lines and self._read(body).is_deterministic(self._served.model)

    def _read(self, body: str) -> EndpointAdapter:
        return read_adapter(self._endpoint, parse_json(body.encode()))

    def _asks(self, line: str, exchange: EndpointAdapter) -> list[EngineRequest]:
        """Lines of one shard are one group: the engine begins them before those of the next."""
        asker = RequestOrigin(job_id=line, tenant=self._tenant_id, priority=Priority.BATCH, group=self.id)
        asks = exchange.engine_requests(self._served.model, asker)
        return [as_exclusive(ask) for ask in asks] if self._suspicion.is_suspect(line) else asks

    def _receive(self, timeout_seconds: float) -> None:
        """Wait for one message, then take all that are there."""
        try:
            action = self._inbox.get(timeout=timeout_seconds)
            while True:
                action()
                action = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _ended(self, line: str, outcome: EngineOutcome) -> None:
        progress = self._progress
        if line not in progress.running:
            return
        if isinstance(outcome, Finished) and outcome.reason is FinishReason.CANCELLED:
            self._suspicion.stopped(line)
            return
        if not self._suspicion.ended(line, outcome):
            return
        if not progress.ended:
            self._oldest_result_at = time.monotonic()
        self._lines[line].finish(outcome)
        progress.end(line, outcome)

    def _result(self, ended: Ended) -> LineResult:
        run = self._lines.get(ended.line)  # None for a twin
        exchange = run.exchange if run is not None else self._read(self._progress.bodies[ended.line])
        match ended.outcome:
            case Finished() | Embedded() as outcome:
                result = self._answered(ended.line, exchange, _from_cache(outcome) if ended.is_twin else outcome)
            case Failed() as failed:
                result = LineResult(job_id=ended.line, problem=exchange.problem(failed).to_json())
            case EngineLost():
                result = LineResult(job_id=ended.line, problem=engine_crash().to_json())
        return replace(result, seconds=None if run is None else run.seconds)

    def _answered(self, line: str, exchange: EndpointAdapter, outcome: EngineResult) -> LineResult:
        """The answer, or why it is none; its tokens were spent either way."""
        problem = exchange.reject_reason(outcome)
        answer = exchange.answer(self._served.head(line), outcome)
        return LineResult(
            job_id=line,
            answer=answer if problem is None else None,
            problem=None if problem is None else problem.to_json(),
            prompt_tokens=outcome.usage.prompt_tokens,
            completion_tokens=outcome.usage.completion_tokens,
            cached_tokens=outcome.usage.cached_tokens,
            reasoning_tokens=outcome.usage.reasoning_tokens,
        )

    def _check_lease(self) -> None:
        if self._lease.is_lost:
            raise LeaseLost
        if self._lease.is_unwanted:
            self.stop(abort=True)

    def _is_due(self) -> bool:
        """Are there results for a full group, or has one waited for long enough?"""
        settings, ended = self._context.settings, self._progress.ended
        is_old = time.monotonic() - self._oldest_result_at >= settings.commit_seconds
        is_awaited = is_old or self._suspicion.wants_all_written
        return len(ended) >= settings.commit_lines or (bool(ended) and is_awaited)

    def _commit(self) -> None:
        """Write a group of what has ended. A sick database is waited for: the fence tells if we were too slow."""
        settings = self._context.settings
        group = [self._result(ended) for ended in islice(self._progress.ended, settings.commit_lines)]
        try:
            status = self._write(group)
        except SQLAlchemyError as error:
            log.warning("commit_failed", shard=self.id, reason=type(error).__name__)
            time.sleep(settings.commit_seconds)
            if self._lease.is_lost:
                raise LeaseLost from None
            return
        self._progress.written(len(group))
        for result in group:
            self._lines.pop(result.job_id, None)
        self._oldest_result_at = time.monotonic()
        if status is not BatchState.IN_PROGRESS:
            self.stop(abort=True)

    def _write(self, group: list[LineResult]) -> BatchState:
        """One transaction: results, counters, usage. Rolled back as a whole when the fence has moved on."""
        served = self._served
        statement = shards.write_lines(self.id, group, served.made_by)
        with self._context.database.begin() as connection:
            stored = {row[0] for row in connection.execute(statement)}
            written = [result for result in group if result.job_id in stored]
            counted = connection.execute(shards.count_lines(self.id, self._fence, written)).one_or_none()
            if counted is None:
                raise LeaseLost
            status, is_paused = counted
            self._suspicion.written(connection, stored)
            connection.execute(
                jobs.add_usage(
                    self._tenant_id,
                    served.model.name,
                    key=self._key_id,
                    requests=len(written),
                    prompt_tokens=sum(result.prompt_tokens for result in written),
                    completion_tokens=sum(result.completion_tokens for result in written),
                    cached_tokens=sum(result.cached_tokens for result in written),
                )
            )
            failpoint(Point.SHARD_WRITING)
        failpoint(Point.SHARD_WRITTEN)
        for result in written:
            if (run := self._lines.get(result.job_id)) is not None:
                run.tell_end(None if result.problem is None else Problem.from_json(result.problem))
        if is_paused:
            self.stop(abort=False)
        return BatchState(status)

    def _leave(self) -> None:
        """Done, or ready for the next worker; the last one out sends the batch to the clerk."""
        failpoint(Point.SHARD_LEAVING)
        left = retry_write(self._write_left, lambda: not self._lease.is_lost)
        if left is None:
            raise LeaseLost
        failpoint(Point.SHARD_LEFT)
        if retry_write(self._begin_finalizing, lambda: True):
            failpoint(Point.SHARD_FINALIZING)
            self._context.tickets.finalize(self._batch_id)
        log.info("shard_left", shard=self.id, state=ShardState(left))

    def _write_left(self) -> str | None:
        with self._context.database.begin() as connection:
            left: str | None = connection.execute(shards.leave_shard(self.id, self._fence)).scalar_one_or_none()
            return left or connection.execute(shards.find_left(self.id, self._fence)).scalar_one_or_none()

    def _begin_finalizing(self) -> bool:
        """Is the rest the clerk's?"""
        with self._context.database.begin() as connection:
            connection.execute(batches.begin_finalizing(self._batch_id))
            return bool(connection.execute(batches.is_ready_to_finalize(self._batch_id)).scalar_one())

    def _cancel_running(self) -> None:
        for line in self._progress.running:
            self._lines[line].cancel()


def _from_cache(outcome: EngineResult) -> EngineResult:
    """A twin's answer: nothing of its prompt was computed."""
    usage = msgspec.structs.replace(outcome.usage, cached_tokens=outcome.usage.prompt_tokens)
    return msgspec.structs.replace(outcome, usage=usage)
