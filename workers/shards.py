"""One shard: feed its lines to the engine at batch priority, write results in groups under the fence, leave it.

A lane is a thread that takes one shard after the other; two or three lanes overlap so that slots never run dry.
A line whose engine died is a suspect: it is run again alone, and fails alone when it has seen too many crashes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy import Row
from sqlalchemy.exc import DBAPIError

from core.models import ModelConfig
from core.states import BatchState, ShardState
from core.strict_json import parse_json
from core.wire.chat import ChatRequest
from db import batches, jobs, shards
from db.shards import LineResult
from engine.client import EngineLost
from engine.messages import Delta, Failed, Finished, FinishReason, Priority, Request
from workers.answers import completion, engine_crash, problem_of
from workers.context import Served, WorkerContext
from workers.leases import Lease
from workers.requests import to_engine_request

log = structlog.get_logger()

Outcome = Finished | Failed | EngineLost


class LeaseLost(Exception):
    """Another worker has the shard; what is not written is not ours to write."""


@dataclass(slots=True)
class _Sink:
    """Hands a line's end to the lane's thread."""

    line: str
    inbox: queue.SimpleQueue[tuple[str, Outcome] | None]

    def on_delta(self, delta: Delta) -> None:
        """Batch lines are not streamed."""

    def on_end(self, outcome: Outcome) -> None:
        """Called in the client's I/O thread, once."""
        self.inbox.put((self.line, outcome))


@dataclass(slots=True)
class Progress:
    """Where the lines of a shard are. Each open line is in exactly one of waiting, suspects and running."""

    waiting: deque[str]
    bodies: dict[str, str]
    suspects: deque[str] = field(default_factory=deque)
    running: set[str] = field(default_factory=set)
    crashes: dict[str, int] = field(default_factory=dict)
    results: list[LineResult] = field(default_factory=list)
    oldest_result_at: float = 0.0
    is_stopping: bool = False

    def next_line(self, window: int) -> str | None:
        """The line to submit now: suspects first and alone, then as many others as the window holds."""
        if self.is_stopping:
            return None
        if self.suspects:
            return self.suspects.popleft() if not self.running else None
        if self.waiting and len(self.running) < window and not self._runs_a_suspect():
            return self.waiting.popleft()
        return None

    def crashed(self, line: str) -> int:
        """A running line's engine died; returns how often that has happened to it."""
        self.running.discard(line)
        self.crashes[line] = self.crashes.get(line, 0) + 1
        return self.crashes[line]

    def is_over(self) -> bool:
        """Nothing runs and nothing will be begun."""
        return not self.running and (self.is_stopping or not (self.waiting or self.suspects))

    def check_integrity(self) -> None:
        """Each open line is in one place."""
        places = [*self.waiting, *self.suspects, *self.running]
        assert len(places) == len(set(places)), "a line is in two places"
        assert set(places) <= set(self.bodies), "a line of another shard"

    def _runs_a_suspect(self) -> bool:
        return any(line in self.crashes for line in self.running)


class ShardRun:
    """One claimed shard, from its first line to `leave`."""

    def __init__(self, context: WorkerContext, claim: Row[*tuple[Any, ...]], served: Served) -> None:
        self._context = context
        self._served = served
        self.id: str = claim.id
        self._batch_id: str = claim.batch_id
        self._tenant_id: str = claim.tenant_id
        self._fence: int = claim.fence
        self._inbox: queue.SimpleQueue[tuple[str, Outcome] | None] = queue.SimpleQueue()
        self._lease: Lease = context.leases.hold(self.id, served.model.name, self._fence, self.wake)
        self._progress = Progress(deque(), {})
        self._is_leaving = False

    def wake(self) -> None:
        """Look at the lease and at `stop` again; callable from any thread."""
        self._inbox.put(None)

    def stop(self, *, abort: bool) -> None:
        """Begin no more lines; with `abort`, do not wait for the running ones."""
        self._is_leaving = self._is_leaving or abort
        self._progress.is_stopping = True
        self.wake()

    def run(self) -> None:
        """Until every line has ended, the batch is not wanted any more, or the lease is lost."""
        try:
            with self._context.database.begin() as connection:
                rows = connection.execute(shards.queued_lines(self.id)).all()
            self._progress.bodies = dict(rows)
            self._progress.waiting.extend(self._progress.bodies)
            self._generate()
            self._leave()
        except LeaseLost:
            log.warning("shard_lost", shard=self.id, fence=self._fence)
        finally:
            self._cancel_running()
            self._context.leases.drop(self._lease)

    def _generate(self) -> None:
        settings = self._context.settings
        window = max(2, self._served.slots * 2)
        while not self._progress.is_over() and not self._is_leaving:
            self._submit(window)
            self._receive(settings.commit_seconds)
            self._check_lease()
            if self._is_due(settings.commit_lines, settings.commit_seconds):
                self._commit()
        self._cancel_running()
        self._commit()

    def _submit(self, window: int) -> None:
        if not self._context.leases.is_trusted(self._lease):
            return
        while (line := self._progress.next_line(window)) is not None:
            self._progress.running.add(line)
            self._served.engine.submit(self._request(line), _Sink(line, self._inbox))

    def _request(self, line: str) -> Request:
        chat = ChatRequest.model_validate(parse_json(self._progress.bodies[line].encode()))
        model: ModelConfig = self._served.model
        return to_engine_request(line, chat, model, tenant=self._tenant_id, priority=Priority.BATCH)

    def _receive(self, timeout_seconds: float) -> None:
        """Wait for one message, then take all that are there."""
        try:
            message = self._inbox.get(timeout=timeout_seconds)
            while True:
                if message is not None:
                    self._ended(*message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _ended(self, line: str, outcome: Outcome) -> None:
        progress = self._progress
        if line not in progress.running:
            return
        match outcome:
            case Finished(reason=FinishReason.CANCELLED):
                progress.running.discard(line)
                progress.waiting.append(line)
            case Finished():
                self._keep(self._answered(line, outcome))
            case Failed():
                self._keep(LineResult(job_id=line, problem=problem_of(outcome).to_json()))
            case EngineLost():
                if progress.crashed(line) < self._context.settings.line_attempts:
                    progress.suspects.append(line)
                else:
                    log.warning("line_convicted", line=line, shard=self.id)
                    self._keep(LineResult(job_id=line, problem=engine_crash().to_json()))

    def _answered(self, line: str, finished: Finished) -> LineResult:
        return LineResult(
            job_id=line,
            answer=completion(line, self._served.model.name, self._served.fingerprint, finished),
            prompt_tokens=finished.usage.prompt_tokens,
            completion_tokens=finished.usage.completion_tokens,
            cached_tokens=finished.usage.cached_tokens,
        )

    def _keep(self, result: LineResult) -> None:
        progress = self._progress
        progress.running.discard(result.job_id)
        if not progress.results:
            progress.oldest_result_at = time.monotonic()
        progress.results.append(result)

    def _check_lease(self) -> None:
        if self._lease.is_lost:
            raise LeaseLost
        if self._lease.is_unwanted:
            self.stop(abort=True)

    def _is_due(self, lines: int, seconds: float) -> bool:
        results = self._progress.results
        return len(results) >= lines or bool(results and time.monotonic() - self._progress.oldest_result_at >= seconds)

    def _commit(self) -> None:
        """Write what has ended. A sick database is waited for: the fence tells if we were too slow."""
        while self._progress.results:
            group = self._progress.results[: self._context.settings.commit_lines]
            try:
                status = self._write(group)
            except DBAPIError as error:
                log.warning("commit_failed", shard=self.id, reason=type(error).__name__)
                time.sleep(self._context.settings.commit_seconds)
                if self._lease.is_lost:
                    raise LeaseLost from None
                continue
            del self._progress.results[: len(group)]
            self._progress.oldest_result_at = time.monotonic()
            if status is not BatchState.IN_PROGRESS:
                self.stop(abort=True)

    def _write(self, group: list[LineResult]) -> BatchState:
        """One transaction: results, counters, usage. Rolled back as a whole when the fence has moved on."""
        served = self._served
        statement = shards.write_lines(self.id, group, build=served.build, model_hash=served.model_hash)
        with self._context.database.begin() as connection:
            stored = {row[0] for row in connection.execute(statement)}
            written = [result for result in group if result.job_id in stored]
            status = connection.execute(shards.count_lines(self.id, self._fence, written)).scalar_one_or_none()
            if status is None:
                raise LeaseLost
            connection.execute(
                jobs.add_usage(
                    self._tenant_id,
                    served.model.name,
                    requests=len(written),
                    prompt_tokens=sum(result.prompt_tokens for result in written),
                    completion_tokens=sum(result.completion_tokens for result in written),
                    cached_tokens=sum(result.cached_tokens for result in written),
                )
            )
        return BatchState(status)

    def _leave(self) -> None:
        """Done, or ready for the next worker; the last one out sends the batch to the clerk."""
        with self._context.database.begin() as connection:
            left = connection.execute(shards.leave_shard(self.id, self._fence)).one_or_none()
        if left is None:
            raise LeaseLost
        with self._context.database.begin() as connection:
            connection.execute(batches.begin_finalizing(self._batch_id))
            is_clerks_turn = connection.execute(batches.is_clerks_turn(self._batch_id)).scalar_one()
        if is_clerks_turn:
            self._context.tickets.finalize(self._batch_id)
        log.info("shard_left", shard=self.id, state=ShardState(left[0]))

    def _cancel_running(self) -> None:
        for line in self._progress.running:
            self._served.engine.cancel(line)


class Lanes:
    """The lanes of one model in this process."""

    def __init__(self, context: WorkerContext, served: Served) -> None:
        self._context = context
        self._served = served
        self._free = threading.Semaphore(context.settings.batch_lanes)
        self._lock = threading.Lock()
        self._runs: set[ShardRun] = set()
        self._is_draining = False

    def work(self) -> None:
        """Take shards until there is none; returns at once when all lanes do that already."""
        if self._is_draining or not self._free.acquire(blocking=False):
            return
        try:
            while not self._is_draining and (run := self._claim()) is not None:
                try:
                    run.run()
                finally:
                    with self._lock:
                        self._runs.discard(run)
        finally:
            self._free.release()

    def drain(self, *, abort: bool) -> None:
        """Begin nothing new; with `abort`, stop what runs."""
        self._is_draining = True
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.stop(abort=abort)

    def is_idle(self) -> bool:
        """Does no shard run here?"""
        with self._lock:
            return not self._runs

    def _claim(self) -> ShardRun | None:
        context = self._context
        statement = shards.claim_next_shard(self._served.model.name, context.owner, context.lease)
        with context.database.begin() as connection:
            claim = connection.execute(statement).one_or_none()
        if claim is None:
            return None
        log.info("shard_claimed", shard=claim.id, batch=claim.batch_id, fence=claim.fence)
        run = ShardRun(context, claim, self._served)
        with self._lock:
            self._runs.add(run)
        return run
