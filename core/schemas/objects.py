"""Schemas of response objects: files, batches, jobs, models, lists, usage, errors.

Times are unix seconds. Every key that OpenAI requires is present, null without a value.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict


class ResponseModel(BaseModel):
    """Base of responses: frozen, and with fields that may be called `model_…`."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


_Item = TypeVar("_Item")


class FileObject(ResponseModel):
    """A stored file. `status` is always processed: a batch checks the content when it uses the file."""

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
    """The response to a DELETE."""

    id: str
    object: str
    deleted: Literal[True] = True


class BatchError(ResponseModel):
    """The reason why a file cannot become a batch; `line` is 1-based and counts blank lines."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(ResponseModel):
    """The errors of a batch."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(ResponseModel):
    """The counts of a batch's lines."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(ResponseModel):
    """The part of the input tokens that came from the prefix cache."""

    cached_tokens: int = 0


class OutputTokensDetails(ResponseModel):
    """The part of the output tokens that is reasoning."""

    reasoning_tokens: int = 0


class BatchUsage(ResponseModel):
    """The tokens of a batch."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0


class BatchObject(ResponseModel):
    """A batch. The fields after `metadata` are extensions, described in docs/extensions.md."""

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
    input_file_name: str | None = None
    api_key_id: str | None = None
    parent_batch_id: str | None = None
    table_file_id: str | None = None
    priority: int = 0
    paused_at: int | None = None
    tokens_per_second: float | None = None
    eta_at: int | None = None
    will_miss_window: bool | None = None
    waiting_for: str | None = None
    waiting_for_model: str | None = None
    model_ready_at: int | None = None


class ModelObject(ResponseModel):
    """A served model, or an alias of the model `root`. The fields after `owned_by` are extensions.

    `backend` is that of its model file; `context_size` is null for a server whose limit the file does not state, and `slots` are
    the requests that a server gets at a time.
    `status`, `reason` and `warning` are those of its `core.readiness.ModelState`. While the model is in memory, `slots` and
    `memory_bytes` are those of all its engines together, and `device` is the first of `devices`; else they are null, and
    `slots` is the number that the model will have, or null where the engine chooses it. `load_requested`
    is true from an admin's request to load or reload it until that has ended; it is `pinned` by its file or by an admin.
    `settings` are those with which one of its engines computes, and the speeds that were measured for them.
    `shared_by` are the models between which the requests for an alias are divided by their `weight`; `root` is then the first
    that is not down.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "millrace"
    root: str
    aliases: tuple[str, ...] = ()
    backend: str
    context_size: int | None
    slots: int | None = None
    endpoints: tuple[str, ...] = ()
    device: str | None = None
    devices: tuple[str, ...] = ()
    memory_bytes: int | None = None
    settings: dict[str, Any] | None = None
    status: str
    reason: str | None = None
    warning: str | None = None
    fallback: tuple[str, ...] = ()
    weight: float | None = None
    shared_by: tuple[str, ...] = ()
    load_requested: bool = False
    pinned: bool = False


class JobObject(ResponseModel):
    """A chat request that is answered later: `POST /v1/jobs`."""

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
    """A page of a list; `after` of the next page is `last_id`."""

    object: Literal["list"] = "list"
    data: list[_Item]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class PromptTokensDetails(ResponseModel):
    """The part of the prompt tokens that came from the prefix cache."""

    cached_tokens: int = 0


class CompletionTokensDetails(ResponseModel):
    """The part of the completion tokens that is reasoning."""

    reasoning_tokens: int = 0


class Usage(ResponseModel):
    """The tokens of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class ErrorObject(ResponseModel):
    """OpenAI's error object; all four keys are always present."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(ResponseModel):
    """The response of every failed request."""

    error: ErrorObject
