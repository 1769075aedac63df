"""Schemas of OpenAI's usage page: buckets with one result per group. Times are unix seconds."""

from __future__ import annotations

from typing import Literal

from core.schemas.objects import ResponseModel


class UsageResult(ResponseModel):
    """Tokens of one group; `api_key_id` and `model` are null unless grouped by, `api_key_id` also for requests without a key."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    num_model_requests: int
    project_id: str
    api_key_id: str | None = None
    model: str | None = None


class UsageBucket(ResponseModel):
    """One interval: `start_time` inclusive, `end_time` exclusive."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[UsageResult]


class UsagePage(ResponseModel):
    """All buckets of the requested interval."""

    object: Literal["page"] = "page"
    data: list[UsageBucket]
    has_more: Literal[False] = False
    next_page: None = None
