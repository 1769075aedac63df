"""Estimate the duration of a checked file from recent batches of its models."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from core.schemas.batch_validation import BatchEstimate, ModelLines
from db import validations


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentWork:
    """Totals of a model's last completed batches, and the lines that are queued before new ones."""

    batches: int
    lines: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    queued_lines: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Prompt and answer tokens; None without a measurement."""
        tokens = self.prompt_tokens + self.completion_tokens
        return tokens / self.seconds if self.seconds > 0 and tokens else None

    @property
    def computed_share(self) -> float:
        """The part of these tokens that was computed, not cached: the only one that the rate of a batch counts."""
        tokens = self.prompt_tokens + self.completion_tokens
        return (tokens - self.cached_tokens) / tokens if tokens else 1.0


async def recent_work(connection: AsyncConnection, model: str) -> RecentWork:
    """Read the recent work of a model."""
    recent = await validations.recent_work(model).async_fetch_one(connection)
    queued = (await connection.execute(validations.queued_lines(model))).scalar_one()
    return RecentWork(**recent._asdict(), queued_lines=queued)


def estimate(lines: list[ModelLines], work: dict[str, RecentWork], now: float | None = None) -> BatchEstimate:
    """The estimate of a file; models run one after the other, as on a shared device. Empty if one was never measured."""
    measured_batches = sum(work[each.model].batches for each in lines)
    queued_lines = sum(work[each.model].queued_lines for each in lines)
    if not lines or any(work[each.model].tokens_per_second is None for each in lines):
        return BatchEstimate(measured_batches=measured_batches, queued_lines=queued_lines)
    output = sum(_output_tokens(each, work[each.model]) for each in lines)
    total = output + sum(each.prompt_tokens for each in lines)
    computed = sum(_tokens(each, work[each.model]) * work[each.model].computed_share for each in lines)
    seconds = sum(_seconds(each, work[each.model]) for each in lines)
    return BatchEstimate(
        measured_batches=measured_batches,
        tokens_per_second=computed / sum(_run_seconds(each, work[each.model]) for each in lines),
        queued_lines=queued_lines,
        output_tokens=output,
        total_tokens=total,
        seconds=seconds,
        finish_at=int((time.time() if now is None else now) + seconds),
    )


def _output_tokens(lines: ModelLines, work: RecentWork) -> int:
    """Output tokens if answers are as long as recent ones, at most those of the lines' limits."""
    return min(lines.max_output_tokens, round(lines.lines * work.completion_tokens / work.lines))


def _tokens(lines: ModelLines, work: RecentWork) -> int:
    return lines.prompt_tokens + _output_tokens(lines, work)


def _run_seconds(lines: ModelLines, work: RecentWork) -> float:
    rate = work.tokens_per_second
    assert rate is not None, "checked before"
    return _tokens(lines, work) / rate


def _seconds(lines: ModelLines, work: RecentWork) -> float:
    """The time of these lines and of those queued before them, if each takes as long as recent ones."""
    return _run_seconds(lines, work) + work.queued_lines * work.seconds / work.lines
