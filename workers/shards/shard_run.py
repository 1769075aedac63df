"""Run of one claimed shard: feed its lines to the engine at batch priority, write results in groups under the fence, leave it.

`ShardProgress` decides what runs, `PoisonTracker` stores crash counts, `ShardLanes` claims one shard after the other.
"""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from math import inf
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.counters import CounterName
from core.errors import Problem
from core.failpoints import Point, failpoint
from core.models.engine_options import BackendKind
from core.schemas.endpoints import EMBEDDINGS_ENDPOINT
from core.states import BatchState, JobState, ShardState, is_suspicious
from core.strict_json import parse_json
from core.telemetry.origin import Origin
from db import batches, jobs, shards
from db.connections import is_transient
from db.shards import ClaimedShard, LineResult
from engine.process.client import EngineLost
from engine.types import Priority
from workers.context import ServedModel, WorkerContext
from workers.generation.endpoints.base import EndpointAdapter, EngineOutcome, EngineRequest, RequestOrigin
from workers.generation.endpoints.registry import read_accepted
from workers.generation.inference_span import start_inference
from workers.generation.job_stream import JobStream
from workers.generation.problems import refused_answer
from workers.generation.quarantine import as_exclusive
from workers.runtime.db_retry import retry_write
from workers.shards.isolation import Isolation
from workers.shards.line_run import LineRun, line_result
from workers.shards.poison import LeaseLost, PoisonTracker
from workers.shards.shard_progress import Block, EndedLine, Line, LineState, ParsedBody, Retry, ShardProgress, Window
from workers.shards.shard_trace import ShardTrace

log = structlog.get_logger()

_STEPS_AHEAD: Final = 8  # steps of embeddings that the lines of a shard fill
_CHARACTERS_PER_TOKEN: Final = 4
_EMBEDDED_LINES: Final = 256  # at a time, however short they are
_GROUP_CHARACTERS: Final = 32 << 20  # of answers: they are one text, and Postgres takes up to a gigabyte


class ShardRun:
    """A claimed shard, from its first line until it is left."""

    def __init__(
        self,
        context: WorkerContext,
        claim: ClaimedShard,
        served: ServedModel,
        is_watched: Callable[[str], bool] = lambda _: False,
        isolation: Isolation | None = None,
    ) -> None:
        self._context = context
        self._served = served
        self.id = claim.id
        self._batch_id = claim.batch_id
        self._tenant_id = claim.tenant_id
        self._fence = claim.fence
        self._is_watched = is_watched
        # Calls for the lane's thread. They do not hold the run: one that comes after its end would keep it in memory.
        self._inbox: queue.SimpleQueue[Callable[[ShardRun], None]] = queue.SimpleQueue()
        self._lease = context.leases.hold(self.id, served.model.name, self._fence, self.wake)
        self._endpoint = claim.endpoint
        self._trace = ShardTrace(claim, context.settings.trace_lines)
        self._key_id = claim.key_id
        self._runs: dict[str, LineRun] = {}  # the last attempt at each line that is not written yet
        self._progress = ShardProgress(context.settings.line_attempts, all_suspects=is_suspicious(claim.attempt))
        self._poison = PoisonTracker(context, claim)
        self._isolation = isolation or Isolation()
        self._oldest_result_at = 0.0
        self._is_leaving = False

    @property
    def num_running(self) -> int:
        """Lines that run now."""
        return len(self._progress.running)

    def wake(self) -> None:
        """Make the lane check its lease and `stop` again. Thread-safe."""
        self._inbox.put(lambda _: None)

    def watch(self, line_id: str) -> None:
        """Stream this line, if it is one of the shard's. Thread-safe."""
        if line_id in self._progress.lines:
            self._inbox.put(lambda run: run._watch(line_id))

    def stop(self, *, abort: bool) -> None:
        """Begin no more lines; with `abort`, do not wait for the running ones."""
        self._is_leaving = self._is_leaving or abort
        self._progress.is_stopping = True
        self.wake()

    def run(self) -> None:
        """Run until every line has ended, the batch is not wanted any more, or the lease is lost."""
        with self._trace.work():
            self._run()

    def _run(self) -> None:
        try:
            self._load()
            self._generate()
            self._leave()
        except LeaseLost:
            log.warning("shard_lost", shard=self.id, fence=self._fence)
        except SQLAlchemyError as error:  # the lease runs out, and another worker goes on
            log.error("shard_abandoned", shard=self.id, reason=type(error).__name__)
        finally:
            self._cancel_running()
            self._runs.clear()  # which refer to this run
            self._isolation.remove(self.id)
            self._context.leases.drop(self._lease)

    def _load(self) -> None:
        """Read the lines; those with too many crashes end without running again."""
        retry_write(self._read_lines, lambda: not self._lease.is_lost)
        if self._progress.all_suspects:
            log.warning("shard_suspected", shard=self.id, lines=len(self._progress.lines))
        for line in self._progress.take_exhausted():
            self._parse(line)
            self._apply(line, EngineLost(request_id=line.id))

    def _read_lines(self) -> None:
        with self._context.database.autocommit() as connection:
            rows = shards.queued_lines(self.id).fetch_all(connection)
            self._poison.load(connection)
        self._progress.add((line, body, crashes) for line, body, crashes in rows)

    def _generate(self) -> None:
        window = self._window()
        while not self._progress.is_over() and not self._is_leaving:
            self._begin_lines(window)
            self._receive(0.0 if self._is_due() else self._context.settings.commit_seconds)
            self._poison.save(self._progress)
            self._check_lease()
            if self._is_due():
                self._commit()
        self._cancel_running()
        for line in list(self._progress.running):
            self._isolation.leave(self.id)
            self._progress.requeue(line)
        self._poison.save(self._progress)
        while self._progress.ended:
            self._commit()

    def _window(self) -> Window:
        """Lines that keep the engine busy: two for each slot; of embeddings, some steps full, since they share steps."""
        model = self._served.model
        if self._endpoint != EMBEDDINGS_ENDPOINT or model.backend is BackendKind.OPENAI:
            return Window(max(2, self._served.slots * 2))
        return Window(_EMBEDDED_LINES, _STEPS_AHEAD * model.prefill_tokens * _CHARACTERS_PER_TOKEN)

    def _begin_lines(self, window: Window) -> None:
        with self._served.engine.group():
            self._begin_until_full(window)

    def _begin_until_full(self, window: Window) -> None:
        while self._try_enter(window):
            line = self._progress.begin()
            adapter = self._parse(line).adapter
            if (failure := adapter.refusal(line.id) or self._poison.find_failure(line)) is not None:
                self._on_end(line, failure)
            elif line.is_suspect and not self._poison.save(self._progress):
                self._isolation.leave(self.id)
                self._progress.requeue(line)
                return
            else:
                self._submit(line, adapter)

    def _try_enter(self, window: Window) -> bool:
        """Enter the isolation if a line may begin."""
        is_trusted = self._context.leases.is_trusted(self._lease)
        if not is_trusted or not self._progress.may_begin(window):
            return False
        return self._isolation.enter(self.id, exclusive=self._progress.all_suspects)

    def _parse(self, line: Line) -> ParsedBody:
        """The parsed body, read when the line, or the line that it duplicates, first begins."""
        if line.parsed is not None:
            return line.parsed
        fields = parse_json(line.body.encode())
        parsed = ParsedBody(read_accepted(self._endpoint, fields, self._served.model), fields)
        is_shared = self._context.settings.share_identical_lines and parsed.adapter.is_deterministic(self._served.model)
        self._progress.set_parsed(line, parsed, is_shared=is_shared)
        return parsed

    def _submit(self, line: Line, adapter: EndpointAdapter) -> None:
        before = self._runs.get(line.id)
        inference = None
        if self._trace.has_span(line.id):
            fields = self._parse(line).fields
            inference = start_inference(self._served.model, self._endpoint, fields, self._trace.origin, line.id)
        self._runs[line.id] = LineRun(
            self._served.engine,
            self._engine_requests(line, adapter, self._trace.origin_of_line(inference)),
            partial(self._hand_over, line),
            number=0 if before is None else before.number + 1,
            inference=inference,
        )
        self._runs[line.id].begin()
        if self._is_watched(line.id):
            self._watch(line.id)

    def _engine_requests(self, line: Line, adapter: EndpointAdapter, trace: Origin) -> list[EngineRequest]:
        """Lines of one shard are one group: the engine begins them before those of the next shard."""
        asked_by = RequestOrigin(
            job_id=line.id, tenant=self._tenant_id, priority=Priority.BATCH, group=self.id, trace=trace
        )
        requests = adapter.engine_requests(self._served.model, asked_by)
        return [as_exclusive(request) for request in requests] if line.is_suspect else requests

    def _hand_over(self, line: Line, outcome: EngineOutcome) -> None:
        """Pass an outcome from the engine client's thread to the lane's."""
        self._inbox.put(lambda run: run._on_end(line, outcome))

    def _watch(self, line_id: str) -> None:
        line = self._progress.lines.get(line_id)
        if line is not None and line.state is LineState.RUNNING:
            self._runs[line_id].watch(partial(self._make_stream, line))

    def _make_stream(self, line: Line) -> JobStream:
        """The stream of one attempt. A claim may run a line several times, once after each crash."""
        attempt = self._fence << 8 | min(self._runs[line.id].number, 255)
        encoder = self._parse(line).adapter.stream_encoder(self._served.header(line.id), is_watched=True)
        return JobStream(line.id, attempt, encoder, self._context.publisher.publish)

    def _receive(self, timeout_seconds: float) -> None:
        """Wait for one call, then make all that are there."""
        try:
            action = self._inbox.get(timeout=timeout_seconds)
            while True:
                action(self)
                action = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _on_end(self, line: Line, outcome: EngineOutcome) -> None:
        self._isolation.leave(self.id)
        self._apply(line, outcome)

    def _apply(self, line: Line, outcome: EngineOutcome) -> None:
        """Move a line on, and do what follows from it."""
        if not self._progress.ended:
            self._oldest_result_at = time.monotonic()
        match self._progress.on_outcome(line, outcome):
            case Retry(is_crash=True):
                self._context.counters.add(CounterName.LINES_RETRIED, self._served.model.name)
            case Block():
                self._poison.block(line)

    def _result(self, ended: EndedLine) -> LineResult:
        run = self._runs.get(ended.line.id)  # None for a line that did not run
        return line_result(ended, self._served.header(ended.line.id), None if run is None else run.seconds)

    def _check_lease(self) -> None:
        if self._lease.is_lost:
            raise LeaseLost
        if self._lease.is_unwanted:
            self.stop(abort=True)

    def _is_due(self) -> bool:
        """Are there results for a full group, or has one waited for long enough?"""
        settings, ended = self._context.settings, self._progress.ended
        is_old = time.monotonic() - self._oldest_result_at >= settings.commit_seconds
        is_urgent = is_old or self._progress.must_write_first
        return len(ended) >= settings.commit_lines or (bool(ended) and is_urgent)

    def _commit(self) -> None:
        """Write a group of results, or pause while the database fails; the fence decides whether that took too long."""
        group = self._group()
        try:
            status = self._write_group(group)
        except SQLAlchemyError as error:
            log.warning("commit_failed", shard=self.id, reason=type(error).__name__)
            if not is_transient(error):
                raise
            time.sleep(self._context.settings.commit_seconds)
            if self._lease.is_lost:
                raise LeaseLost from None
            return
        self._progress.written(len(group))
        for result in group:
            self._runs.pop(result.job_id, None)
        is_cut = bool(self._progress.ended) and len(group) < self._context.settings.commit_lines
        self._oldest_result_at = -inf if is_cut else time.monotonic()  # the rest of a group is due at once
        if status is not BatchState.IN_PROGRESS:
            self.stop(abort=True)

    def _group(self) -> list[LineResult]:
        """The next results to write: at least one, and no more once their answers are long."""
        group: list[LineResult] = []
        num_characters = 0
        for ended in islice(self._progress.ended, self._context.settings.commit_lines):
            group.append(self._result(ended))
            num_characters += len(group[-1].answer or "")
            if num_characters >= _GROUP_CHARACTERS:
                break
        return group

    def _write_group(self, group: list[LineResult]) -> BatchState:
        """Store results: together, or one by one if the database refuses one of them, which is then a failed line."""
        try:
            return self._write(group)
        except SQLAlchemyError as error:
            if is_transient(error):
                raise
            log.warning("group_refused", shard=self.id, lines=len(group), reason=type(error).__name__)
        return [self._write_alone(result) for result in group][-1]

    def _write_alone(self, result: LineResult) -> BatchState:
        try:
            return self._write([result])
        except SQLAlchemyError as error:
            if is_transient(error):
                raise
            log.error("result_refused", line=result.job_id, reason=type(error).__name__)
        return self._write([LineResult(job_id=result.job_id, problem=refused_answer().to_json())])

    def _write(self, group: list[LineResult]) -> BatchState:
        """Store results, counters and usage in one transaction, which is rolled back when the fence has moved on."""
        served = self._served
        statement = shards.write_lines(self.id, self._fence, group, served.provenance)
        with self._context.database.begin(committing=Point.SHARD_WRITING, committed=Point.SHARD_WRITTEN) as connection:
            stored: set[str] = set(connection.execute(statement).scalars())
            written = [result for result in group if result.job_id in stored]
            counted = shards.count_lines(self.id, self._fence, written).fetch_optional(connection)
            if counted is None:
                raise LeaseLost
            status, is_paused = counted
            self._poison.record_blocked(connection, stored)
            usage = {
                "requests": len(written),
                "prompt_tokens": sum(result.prompt_tokens for result in written),
                "completion_tokens": sum(result.completion_tokens for result in written),
                "cached_tokens": sum(result.cached_tokens for result in written),
            }
            connection.execute(jobs.add_usage(self._tenant_id, served.model.name, key=self._key_id, **usage))
        self._context.metrics.add_usage(
            self._tenant_id,
            served.model.name,
            reasoning_tokens=sum(result.reasoning_tokens for result in written),
            **usage,
        )
        self._trace.add_results(written)
        self._end_lines(written)
        if is_paused:
            self.stop(abort=False)
        return status

    def _end_lines(self, results: Sequence[LineResult]) -> None:
        """Publish and measure the ends of lines, whose rows are stored."""
        metrics, counters, model = self._context.metrics, self._context.counters, self._served.model.name
        failed: Counter[str | None] = Counter()
        for result in results:
            run = self._runs.get(result.job_id)
            problem = None if result.problem is None else Problem.from_json(result.problem)
            if problem is not None:
                failed[problem.code] += 1
            if run is not None:
                run.publish_end(problem)
                if problem is None and run.seconds is not None:
                    metrics.add_latency(model, run.seconds, run.outcome)
        for code, number in failed.items():
            metrics.add_end(model, JobState.FAILED, code, number=number)
            counters.add(CounterName.LINES_FAILED, model, number)
        if num_completed := len(results) - failed.total():
            metrics.add_end(model, JobState.COMPLETED, number=num_completed)
            counters.add(CounterName.LINES_COMPLETED, model, num_completed)

    def _leave(self) -> None:
        """End the shard or leave it to the next worker; the worker that leaves the last shard sends the batch to the clerk."""
        left = retry_write(self._write_left, lambda: not self._lease.is_lost)
        if left is None:
            raise LeaseLost
        if retry_write(self._begin_finalizing, lambda: True):
            failpoint(Point.SHARD_FINALIZING)
            self._context.tickets.finalize(self._batch_id)
        log.info("shard_left", shard=self.id, state=left, **self._trace.summary())

    def _write_left(self) -> ShardState | None:
        failpoint(Point.SHARD_LEAVING)
        with self._context.database.autocommit() as connection:
            left = connection.execute(shards.leave_shard(self.id, self._fence)).scalar_one_or_none()
            left = left or connection.execute(shards.find_left(self.id, self._fence)).scalar_one_or_none()
        failpoint(Point.SHARD_LEFT)
        return None if left is None else ShardState(left)

    def _begin_finalizing(self) -> bool:
        """Is the batch ready for the clerk?"""
        with self._context.database.autocommit() as connection:
            if not connection.execute(batches.may_be_over(self._batch_id)).scalar_one_or_none():
                return False
            batches.begin_finalizing(self._batch_id).fetch_optional(connection)
            return bool(connection.execute(batches.is_ready_to_finalize(self._batch_id)).scalar_one())

    def _cancel_running(self) -> None:
        for line in self._progress.running:
            if (run := self._runs.get(line.id)) is not None:  # None when the lease was lost before the line began
                run.cancel()
