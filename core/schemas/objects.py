"""Objects we answer with: files, batches, jobs, models, lists, chat completions.

Times are unix seconds. Every key that OpenAI requires is there, null where it has no value.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class ResponseModel(BaseModel):
    """Base of answers: built by us, so only frozen and free to have a field called `model_…`."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


_Item = TypeVar("_Item")


class FileObject(ResponseModel):
    """A stored file. `status` is always processed: content is checked when a batch uses it."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: str | None = None


class DeletedObject(ResponseModel):
    """Answer to a DELETE."""

    id: str
    object: str
    deleted: Literal[True] = True


class BatchError(ResponseModel):
    """Why a file could not become a batch; `line` is 1-based and counts blank lines."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(ResponseModel):
    """The list OpenAI wraps them in."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(ResponseModel):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(ResponseModel):
    """Of the input tokens, those not computed again."""

    cached_tokens: int = 0


class OutputTokensDetails(ResponseModel):
    """Of the output tokens, those spent thinking."""

    reasoning_tokens: int = 0


class BatchUsage(ResponseModel):
    """Tokens of a batch."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0


class BatchObject(ResponseModel):
    """A batch, as `GET /v1/batches/{id}` shows it. What follows `metadata` is not OpenAI's: see docs/extensions.md."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage | None = None
    metadata: dict[str, str] | None = None
    parent_batch_id: str | None = None
    priority: int = 0
    paused_at: int | None = None
    tokens_per_second: float | None = None
    eta_at: int | None = None
    will_miss_window: bool | None = None


class ModelObject(ResponseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "millrace"


class JobObject(ResponseModel):
    """A chat request answered later: `POST /v1/jobs`."""

    id: str
    object: Literal["job"] = "job"
    status: str
    model: str
    created_at: int
    started_at: int | None = None
    finished_at: int | None = None
    attempt: int = 0
    response: dict[str, Any] | None = None  # Any: the chat completion, as it was stored
    error: dict[str, Any] | None = None  # Any: the error object


class ListObject(ResponseModel, Generic[_Item]):
    """A page; `after` of the next page is `last_id`."""

    object: Literal["list"] = "list"
    data: list[_Item]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class PromptTokensDetails(ResponseModel):
    """Of the prompt tokens, those not computed again."""

    cached_tokens: int = 0


class CompletionTokensDetails(ResponseModel):
    """Of the completion tokens, those spent thinking."""

    reasoning_tokens: int = 0


class Usage(ResponseModel):
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class ErrorObject(ResponseModel):
    """OpenAI's error, all four keys always present."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(ResponseModel):
    """What every failing request answers."""

    error: ErrorObject = Field()
