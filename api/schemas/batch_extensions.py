"""What batches have beyond OpenAI's: the lines as objects, the report, and the bodies of retry and change.

`docs/extensions.md` shows each of them in use.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, field_validator

from core.schemas.base import Metadata, RequestModel
from core.schemas.batch import check_window
from core.schemas.generation import GenerationParameters
from core.schemas.objects import BatchUsage, ErrorObject, RequestCounts, ResponseModel, Usage

MOST_CUSTOM_IDS: Final = 50_000


class BatchRequestObject(ResponseModel):
    """One line of a batch. `status` is queued until it has ended: completed, failed, cancelled or expired."""

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
    """What made an answer. With all of these equal, so is the answer, as far as llama.cpp's arithmetic is.

    `template_hash` is of the chat template's text, `settings_hash` of what the model file says that may change an answer
    (template, defaults, adapters, context); all hashes are SHA-256 in hex. `parameters` are what the body said or, where it
    said nothing, the model file; `seed` is the one it was drawn with, whoever chose it. Both are null for embeddings. What
    else was asked is in the body.
    """

    system_fingerprint: str | None
    engine_build: str | None
    model_hash: str | None
    template_hash: str | None
    settings_hash: str | None
    parameters: GenerationParameters | None
    seed: int | None


class BatchRequestDetail(BatchRequestObject):
    """The line with what was asked and what was answered: the body of the plain request, and that of its response."""

    reproducibility: Reproducibility | None = None

    body: dict[str, Any]  # Any: a request body, as the file had it
    response: dict[str, Any] | None = None  # Any: a response body, as it was stored


class BatchRetry(RequestModel):
    """`POST /v1/batches/{id}/retry`: the lines to run again; without names, all that ended without an answer."""

    custom_ids: list[str] | None = Field(None, min_length=1, max_length=MOST_CUSTOM_IDS)


class BatchPatch(RequestModel):
    """`PATCH /v1/batches/{id}`: what is left out stays; metadata of null goes."""

    priority: int | None = Field(None, ge=-100, le=100)
    completion_window: str | None = Field(None, max_length=16)
    metadata: Metadata | None = None

    @field_validator("completion_window")
    @classmethod
    def _known_window(cls, value: str | None) -> str | None:
        return value if value is None else check_window(value)


class LatencySeconds(ResponseModel):
    """Seconds from giving a line to the engine to its answer, its wait for a slot included."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class EngineUse(ResponseModel):
    """What computed some of the lines: with the same three, the same line can be computed again."""

    model: str
    model_hash: str | None
    engine_build: str
    lines: int


class ErrorCount(ResponseModel):
    """How many lines have no answer for the same reason."""

    code: str | None
    lines: int


class BatchReport(ResponseModel):
    """`GET /v1/batches/{id}/report`, of the lines that have ended so far.

    `device_seconds`: time in which at least one line was with an engine. On one device that is what the batch took of it; of
    several devices that worked side by side it is what passed on the clock. `line_seconds` is the sum over the lines.
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
