"""What `POST /v1/batches/validate` is asked and answers: everything wrong with a file, its tokens, and how long it may take.

Counts of tokens are in each model's own tokens. What nothing has measured yet is null, never a guess.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from core.schemas.base import RequestModel
from core.schemas.endpoints import ENDPOINTS
from core.schemas.objects import ResponseModel


class BatchValidate(RequestModel):
    """The JSON form of the question; without an endpoint, the first line's `url` is it."""

    input_file_id: str = Field(min_length=1, max_length=256)
    endpoint: str | None = Field(None, max_length=256)

    @field_validator("endpoint")
    @classmethod
    def _known_endpoint(cls, value: str | None) -> str | None:
        return check_endpoint(value)


class LineProblem(ResponseModel):
    """What is wrong with a line (1-based, blank lines count), or with the file when there is no line.

    `fails` says what comes of it: no batch at all, or a batch in which this line fails.
    """

    line: int | None = None
    custom_id: str | None = None
    code: str
    message: str
    param: str | None = None
    fails: Literal["file", "line"]


class ModelLines(ResponseModel):
    """The lines that would run on one model. `max_output_tokens` is what their limits allow together."""

    model: str
    lines: int
    prompt_tokens: int
    max_output_tokens: int


class BatchEstimate(ResponseModel):
    """From batches that ended here; null where none has. `seconds` includes the `queued_lines` that stand before it."""

    measured_batches: int = 0
    tokens_per_second: float | None = None
    queued_lines: int = 0
    output_tokens: int | None = None
    total_tokens: int | None = None
    seconds: float | None = None
    finish_at: int | None = None


class BatchValidation(ResponseModel):
    """The report. `is_valid`: the file would become a batch; `num_errors` counts those not listed too.

    `lines_unchecked`: whose schema, regex, grammar or tools were not compiled, since the file has more different ones than are
    tried. They may fail or not.
    """

    object: Literal["batch.validation"] = "batch.validation"
    endpoint: str
    is_valid: bool
    lines: int
    lines_failing: int
    lines_over_context: int
    lines_unchecked: int = 0
    num_errors: int
    errors: list[LineProblem]
    models: list[ModelLines]
    prompt_tokens: int
    max_output_tokens: int
    estimate: BatchEstimate | None = None


def check_endpoint(value: str | None) -> str | None:
    """None, or an endpoint that batches may have; raises ValueError."""
    if value is not None and value not in ENDPOINTS:
        raise ValueError(f"supported endpoints are {', '.join(ENDPOINTS)}")
    return value
