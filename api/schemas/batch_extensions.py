"""Batch objects beyond OpenAI's API: lines, report, event data, and the bodies of retry and change.

`docs/extensions.md` shows each of them in use.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, field_validator

from core.schemas.base import Metadata, RequestModel
from core.schemas.batch import BatchPriority, check_window
from core.schemas.generation import GenerationParameters
from core.schemas.objects import BatchUsage, ErrorObject, RequestCounts, ResponseModel, Usage

MOST_CUSTOM_IDS: Final = 50_000


class BatchRequestObject(ResponseModel):
    """One line of a batch. `status`: queued, then completed, failed, cancelled or expired."""

    id: str
    object: Literal["batch.request"] = "batch.request"
    custom_id: str
    line: int
    model: str
    status: str
    attempt: int
    usage: Usage | None = None
    error: ErrorObject | None = None
    finished_at: int | None = None


class Reproducibility(ResponseModel):
    """Everything besides the request body that determines an answer, up to differences of llama.cpp's arithmetic.

    Hashes are SHA-256 in hex: `template_hash` of the text of the chat template, `settings_hash` of the keys of the model file
    that may change an answer (template, defaults, adapters, context). `parameters` are the effective ones, from the body or else
    the model file; `seed` is the one used for sampling, given or chosen by the server. Both are null for embeddings.
    """

    system_fingerprint: str | None
    engine_build: str | None
    model_hash: str | None
    template_hash: str | None
    settings_hash: str | None
    parameters: GenerationParameters | None
    seed: int | None


class BatchRequestContent(BatchRequestObject):
    """A line with its request body, null if that cannot be read, and its response body; null if it was not asked for."""

    body: dict[str, Any] | None = None  # Any: a request body, as the file had it
    response: dict[str, Any] | None = None  # Any: a response body, as it was stored


class BatchRequestDetail(BatchRequestContent):
    """A line with everything that is stored of it."""

    reproducibility: Reproducibility | None = None


class BatchRetry(RequestModel):
    """`POST /v1/batches/{id}/retry`: the lines to run again; by default all that ended without an answer."""

    custom_ids: list[str] | None = Field(None, min_length=1, max_length=MOST_CUSTOM_IDS)


class BatchPatch(RequestModel):
    """`PATCH /v1/batches/{id}`: fields that are absent stay unchanged; `metadata: null` removes it."""

    priority: BatchPriority | None = None
    completion_window: str | None = Field(None, max_length=16)
    metadata: Metadata | None = None

    @field_validator("completion_window")
    @classmethod
    def _valid_window(cls, value: str | None) -> str | None:
        return value if value is None else check_window(value)


class LatencySeconds(ResponseModel):
    """Seconds from the submission of a line to the engine until its answer, including the wait for a slot."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class EngineUse(ResponseModel):
    """A combination of model and build that computed some of the lines; the same three reproduce them."""

    model: str
    model_hash: str | None
    engine_build: str
    lines: int


class ErrorCount(ResponseModel):
    """Number of lines that failed with the same code; `message` and `custom_id` are those of the first of them.

    `remedy` is the next step for this code, as in docs/errors.md.
    """

    code: str | None
    lines: int
    message: str
    custom_id: str
    remedy: str


class TimelineBucket(ResponseModel):
    """The lines that ended in the `seconds` from `at` on, a unix time, and their tokens."""

    at: float
    seconds: float
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int


class BatchTimeline(ResponseModel):
    """`GET /v1/batches/{id}/timeline`: from the start of the first line to the end of the last one, or now.

    `seconds` is the length of each bucket; 0 and no buckets before lines run.
    """

    id: str
    object: Literal["batch.timeline"] = "batch.timeline"
    status: str
    seconds: float
    data: list[TimelineBucket]


class BatchReport(ResponseModel):
    """`GET /v1/batches/{id}/report`, over the lines that have ended so far.

    `device_seconds`: wall-clock time in which an engine was running at least one line; with several devices side by side it is
    counted once. `line_seconds` is the sum over the lines.
    """

    id: str
    object: Literal["batch.report"] = "batch.report"
    status: str
    request_counts: RequestCounts
    usage: BatchUsage | None
    tokens_per_second: float | None
    latency_seconds: LatencySeconds | None
    device_seconds: float
    line_seconds: float
    errors: list[ErrorCount]
    engines: list[EngineUse]


class BatchProgress(ResponseModel):
    """Data of the event `batch.progress`."""

    request_counts: RequestCounts
    tokens_per_second: float | None
    eta_at: int | None
    waiting_for: str | None = None
    waiting_for_model: str | None = None
    model_ready_at: int | None = None
    paused_at: int | None = None
    priority: int = 0
    expires_at: int | None = None


class BatchLineEnded(ResponseModel):
    """Data of the event `batch.line`."""

    custom_id: str
    line: int
    status: str
    code: str | None


class BatchStatusChanged(ResponseModel):
    """Data of the event `batch.status`; `at` is in unix seconds."""

    status: str
    at: int
