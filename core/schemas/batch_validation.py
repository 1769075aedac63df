"""Schemas of `POST /v1/batches/validate`: all errors of a file, its tokens, and an estimate of its time.

Tokens are counted with each model's own tokenizer. A value without a measurement is null, never a guess.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, computed_field, field_validator

from core import error_codes
from core.schemas.base import RequestModel
from core.schemas.endpoints import ENDPOINTS
from core.schemas.objects import ResponseModel


class BatchValidate(RequestModel):
    """The JSON form of the request; the default endpoint is the `url` of the first line."""

    input_file_id: str = Field(min_length=1, max_length=256)
    endpoint: str | None = Field(None, max_length=256)

    @field_validator("endpoint")
    @classmethod
    def _known_endpoint(cls, value: str | None) -> str | None:
        return check_endpoint(value)


class LineProblem(ResponseModel):
    """An error of a line (1-based, blank lines count), or of the file when `line` is null.

    `fails` is its effect: no batch is created, or this line of the batch fails. `remedy` is the next step for its code.
    """

    line: int | None = None
    custom_id: str | None = None
    code: str
    message: str
    param: str | None = None
    fails: Literal["file", "line"]

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own way to serialize a property
    @property
    def remedy(self) -> str:
        """The next step, of `core.error_codes`."""
        return error_codes.remedy(self.code)


class ModelLines(ResponseModel):
    """The lines that would run on one model. `max_output_tokens` is the sum of their limits."""

    model: str
    lines: int
    prompt_tokens: int
    max_output_tokens: int


class BatchEstimate(ResponseModel):
    """An estimate from batches that ended here; null without any. `seconds` includes `queued_lines`, which run before."""

    measured_batches: int = 0
    tokens_per_second: float | None = None
    queued_lines: int = 0
    output_tokens: int | None = None
    total_tokens: int | None = None
    seconds: float | None = None
    finish_at: int | None = None


class BatchValidation(ResponseModel):
    """The report. `is_valid`: the file would become a batch; `num_errors` includes errors that are not listed.

    `lines_unchecked` counts lines with a schema, regex, grammar or tools that were not compiled, since the file has more
    different ones than are compiled, and lines for a server upstream, whose tokens are estimated by their size. They may fail or
    not.
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
    """Return None, or an endpoint that batches accept. Raises ValueError."""
    if value is not None and value not in ENDPOINTS:
        raise ValueError(f"supported endpoints are {', '.join(ENDPOINTS)}")
    return value
