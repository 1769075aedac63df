"""Requests and answers of the endpoints that make a batch from the rows of a table."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from core.schemas.batch import BatchOptions
from core.schemas.batch_validation import BatchEstimate
from core.schemas.objects import ResponseModel
from mapping.spec import MapSpec


class MapOptions(BatchOptions):
    """The fields of both requests; the table is the file of the form, or `input_file_id`."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str | None = Field(None, min_length=1, max_length=256)
    mapping: MapSpec | None = None


class BatchMap(MapOptions):
    """`POST /v1/batches/map`."""

    mapping: MapSpec


class BatchMapPreview(MapOptions):
    """`POST /v1/batches/map/preview`: the same, so that a form can send it as it is, and the number of rows to show.

    Without a mapping, the table is only read.
    """

    sample: int = Field(3, ge=0, le=20)


def as_document(mapping: MapSpec) -> dict[str, Any]:  # Any: JSON
    """The mapping as it was sent."""
    return mapping.model_dump(mode="json", by_alias=True, exclude_unset=True)


class MapColumn(ResponseModel):
    """A column that the answers add; `type` is in the shorthand of schemas."""

    name: str
    type: str


class MapSample(ResponseModel):
    """A row (1-based), its cells, and its request."""

    row: int
    values: dict[str, Any]  # Any: cells
    custom_id: str | None = None
    body: dict[str, Any] | None = None  # Any: the endpoint's own fields


class MapRowProblem(ResponseModel):
    """A row (1-based) that cannot be asked, and why."""

    row: int
    message: str


class MapPreview(ResponseModel):
    """The table as it was read, and the requests that its rows become. `encoding` and `delimiter` are those of a text.

    `rows_asked` are those that `where` and `limit` choose; equal rows share one of the `requests`. `rows_failed` cannot be asked,
    and `problems` has the first of them. Prompt tokens are estimated by the size of the prompts; `max_output_tokens` is the sum
    of the limits of all answers.
    """

    object: Literal["batch.map_preview"] = "batch.map_preview"
    format: str
    encoding: str | None = None
    delimiter: str | None = None
    columns: list[str]
    added_columns: list[MapColumn]
    rows: int
    rows_asked: int
    rows_failed: int
    problems: list[MapRowProblem]
    requests: int
    model: str | None = None
    endpoint: str | None = None
    sample: list[MapSample]
    prompt_tokens: int
    max_output_tokens: int
    estimate: BatchEstimate | None = None
