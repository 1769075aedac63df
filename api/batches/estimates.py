"""How long a checked file may take: from what recent batches of its models measured, or said to be unknown."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from core.schemas.batch_validation import BatchEstimate, ModelLines
from db import validations


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentWork:
    """What a model's last completed batches did together, and the lines that stand before new ones."""

    batches: int
    lines: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    queued_lines: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Prompt and answer tokens; None while nothing was measured."""
        tokens = self.prompt_tokens + self.completion_tokens
        return tokens / self.seconds if self.seconds > 0 and tokens else None


async def recent_work(connection: AsyncConnection, model: str) -> RecentWork:
    """From the rows."""
    recent = await validations.recent_work(model).async_fetch_one(connection)
    queued = (await connection.execute(validations.queued_lines(model))).scalar_one()
    return RecentWork(**recent._asdict(), queued_lines=queued)


def estimate(lines: list[ModelLines], work: dict[str, RecentWork], now: float | None = None) -> BatchEstimate:
    """Models are taken one after the other, as they are where they share a device."""
    measured_batches = sum(work[each.model].batches for each in lines)
    queued_lines = sum(work[each.model].queued_lines for each in lines)
    if not lines or any(work[each.model].tokens_per_second is None for each in lines):
        return BatchEstimate(measured_batches=measured_batches, queued_lines=queued_lines)
    output = sum(_output_tokens(each, work[each.model]) for each in lines)
    total = output + sum(each.prompt_tokens for each in lines)
    seconds = sum(_seconds(each, work[each.model]) for each in lines)
    return BatchEstimate(
        measured_batches=measured_batches,
        tokens_per_second=total / sum(_own_seconds(each, work[each.model]) for each in lines),
        queued_lines=queued_lines,
        output_tokens=output,
        total_tokens=total,
        seconds=seconds,
        finish_at=int((time.time() if now is None else now) + seconds),
    )


def _output_tokens(lines: ModelLines, work: RecentWork) -> int:
    """As long as recent answers were, within what the lines' limits allow."""
    return min(lines.max_output_tokens, round(lines.lines * work.completion_tokens / work.lines))


def _own_seconds(lines: ModelLines, work: RecentWork) -> float:
    rate = work.tokens_per_second
    assert rate is not None, "checked before"
    return (lines.prompt_tokens + _output_tokens(lines, work)) / rate


def _seconds(lines: ModelLines, work: RecentWork) -> float:
    """Its own, behind the lines that wait already: each of those as recent ones were."""
    return _own_seconds(lines, work) + work.queued_lines * work.seconds / work.lines
