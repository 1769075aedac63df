"""Trace of a shard: one span for each run of it, however many lines it has, and one line of the log when it is left.

Some failed lines are named in both, so that they can be found; a share of the lines has spans of their own if that is set.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from core.errors import Problem
from core.queue.names import batch_queue
from core.telemetry import names, tracing
from core.telemetry.names import Attributes
from core.telemetry.origin import Origin
from db.shards import ClaimedShard, LineResult

if TYPE_CHECKING:
    from core.telemetry.sdk import Span

_NAMED_LINES: Final = 5  # of those that failed


class ShardTrace:
    """The span and the counts of one run of a shard."""

    def __init__(self, claim: ClaimedShard, line_share: float) -> None:
        self._claim = claim
        self._line_share = line_share
        self.origin = tracing.batch_origin(claim.batch_id, Origin.from_json(claim.origin_json))
        self._span: Span | None = None
        self._num_lines = 0
        self._codes: Counter[str] = Counter()
        self._failed: list[str] = []

    @contextmanager
    def work(self) -> Iterator[None]:
        """Put the ids of the shard into all log lines of this thread, and into its span."""
        claim, source = self._claim, batch_queue(self._claim.model)
        attributes: Attributes = {
            names.MESSAGING_DESTINATION: source,
            names.BATCH: claim.batch_id,
            names.SHARD: claim.id,
            names.REQUEST_MODEL: claim.model,
            names.ATTEMPT: claim.attempt,
        }
        with tracing.work(
            f"process {source}", self.origin, attributes=attributes, batch=claim.batch_id, shard=claim.id
        ) as span:
            self._span = span
            self.origin = tracing.origin_of(span, self.origin)
            yield
            if span is not None:
                span.set({names.LINES: self._num_lines, names.LINES_FAILED: self._codes.total()})

    def has_span(self, line_id: str) -> bool:
        """Shall this line have a span of its own? The same lines have one in every run."""
        return self._line_share > 0 and zlib.crc32(line_id.encode()) < self._line_share * 2**32

    def origin_of_line(self, inference: Span | None) -> Origin:
        """The span that a server upstream gets with a line: without one of its own it is that of the shard, not sampled,
        since a batch of a million lines must not record a million spans there.
        """
        return self.origin.unsampled() if inference is None else inference.origin

    def add_results(self, results: Sequence[LineResult]) -> None:
        """Count lines that were written; an event names some of those that failed."""
        self._num_lines += len(results)
        for result in results:
            if result.problem is not None:
                self._add_failed(result.job_id, Problem.from_json(result.problem).code or "unknown")

    def _add_failed(self, line_id: str, code: str) -> None:
        self._codes[code] += 1
        if len(self._failed) < _NAMED_LINES:
            self._failed.append(line_id)
            if self._span is not None:
                self._span.add_event("line_failed", {names.JOB: line_id, names.ERROR_TYPE: code})

    def summary(self) -> dict[str, object]:
        """The fields of the log line about this run."""
        failed = {"failed": dict(self._codes), "failed_lines": self._failed} if self._codes else {}
        return {"lines": self._num_lines, **failed}
