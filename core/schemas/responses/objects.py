"""The objects of `/v1/responses`, and how a chat answer becomes one. Values of a row are arguments.

Times are unix seconds. Every key that OpenAI's clients read is there, null where it has no value.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from core.errors import Problem
from core.schemas.objects import OutputTokensDetails, ResponseModel
from core.schemas.responses.items import (
    FunctionCall,
    Item,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    Reasoning,
    ReasoningText,
    item_id,
)
from core.schemas.responses.request import ReasoningConfig, ResponsesRequest

RESPONSE: Final = "resp_"
ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
Answer = dict[str, Any]  # Any: our own chat completion


class IncompleteDetails(ResponseModel):
    """The reason why an answer is incomplete."""

    reason: Literal["max_output_tokens", "content_filter"] = "max_output_tokens"


_CUTS: Final = {  # by the finish reason of the chat
    "length": IncompleteDetails(),
    "content_filter": IncompleteDetails(reason="content_filter"),
}


class ResponseError(ResponseModel):
    """The reason why there is no answer. `code` is one of OpenAI's closed set, `message` has the details."""

    code: Literal["server_error", "invalid_prompt"]
    message: str
    param: str | None = None


class ResponseInputTokensDetails(ResponseModel):
    """The part of the input tokens that came from the prefix cache; cache writes are not counted."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class ResponseUsage(ResponseModel):
    """The tokens of an answer."""

    input_tokens: int
    input_tokens_details: ResponseInputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseObject(ResponseModel):
    """A response. `text`, `tools` and `tool_choice` are those of the request, or their defaults."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    model: str
    output: list[OutputItem] = Field(default_factory=list)
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: ReasoningConfig = ReasoningConfig()
    safety_identifier: str | None = None
    service_tier: Literal["default"] = "default"
    store: bool = True
    temperature: float | None = None
    text: dict[str, Any]  # Any: its `format` has a key that is called schema
    tool_choice: str | dict[str, Any] = "auto"  # Any: as in the request
    tools: list[dict[str, Any]] = Field(default_factory=list)  # Any: as in the request
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class ResponseItemList(ResponseModel):
    """A page of input items; `after` of the next page is `last_id`."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class InputTokens(ResponseModel):
    """The response to `POST /v1/responses/input_tokens`."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class DeletedResponse(ResponseModel):
    """The response to a DELETE."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


def suffix_of(some_id: str) -> str:
    """Return the suffix that the ids of a job, its response and its items share."""
    return some_id.replace("-", "_").rpartition("_")[2]


def unfinished(
    request: ResponsesRequest,
    *,
    response_id: str,
    created_at: int,
    model: str,
    status: ResponseStatus,
    problem: Problem | None = None,
) -> ResponseObject:
    """Build a response without an answer."""
    text = request.text.model_dump(mode="json", by_alias=True, exclude_unset=True) if request.text else {}
    choice = request.tool_choice
    return ResponseObject(
        id=response_id,
        created_at=created_at,
        status=status,
        background=bool(request.background),
        error=None if problem is None else _error(problem),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        model=model,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=request.reasoning or ReasoningConfig(),
        safety_identifier=request.safety_identifier,
        store=request.is_stored,
        temperature=request.temperature,
        text={"format": {"type": "text"}, **text},
        tool_choice=choice if isinstance(choice, str) else choice.model_dump(exclude_unset=True) if choice else "auto",
        tools=[{"strict": None, "parameters": None, **tool.model_dump()} for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
        top_p=request.top_p,
        user=request.user,
    )


def response_of(
    answer: Answer, request: ResponsesRequest, *, response_id: str | None = None, created_at: int | None = None
) -> ResponseObject:
    """Build the response from a chat answer. The default id (for a batch line) is made from that of its job."""
    suffix = suffix_of(response_id or answer["id"])
    cut = _CUTS.get(answer["choices"][0]["finish_reason"])
    base = unfinished(
        request,
        response_id=response_id or RESPONSE + suffix,
        created_at=answer["created"] if created_at is None else created_at,
        model=answer["model"],
        status="completed" if cut is None else "incomplete",
    )
    return base.model_copy(
        update={
            "completed_at": answer["created"] if cut is None else None,
            "incomplete_details": cut,
            "output": output_items(answer, suffix),
            "usage": _usage(answer["usage"]),
        }
    )


def output_items(answer: Answer, suffix: str) -> list[OutputMessage | FunctionCall | Reasoning]:
    """Build the items of an answer: reasoning, text, calls. The last item of a truncated answer is incomplete."""
    choice = answer["choices"][0]
    message = choice["message"]
    reasoning, content, calls = (
        message.get("reasoning_content"),
        message.get("content"),
        message.get("tool_calls") or [],
    )
    items: list[OutputMessage | FunctionCall | Reasoning] = []
    if reasoning:
        items.append(Reasoning(id=item_id("reasoning", suffix), content=[ReasoningText(text=reasoning)]))
    if content or not (reasoning or calls):
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        text = OutputText(text=content or "", logprobs=logprobs)
        items.append(OutputMessage(id=item_id("message", suffix), content=[text]))
    items += [_call(call, index, suffix) for index, call in enumerate(calls)]
    if choice["finish_reason"] in _CUTS:
        status: ItemStatus = "incomplete"
        items[-1] = items[-1].model_copy(update={"status": status})
    return items


def _call(call: Answer, index: int, suffix: str) -> FunctionCall:
    function = call["function"]
    return FunctionCall(
        id=item_id("function_call", suffix, index),
        call_id=call["id"],
        name=function["name"],
        arguments=function["arguments"],
    )


def _usage(usage: Answer) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage["prompt_tokens"],
        input_tokens_details=ResponseInputTokensDetails(cached_tokens=usage["prompt_tokens_details"]["cached_tokens"]),
        output_tokens=usage["completion_tokens"],
        output_tokens_details=OutputTokensDetails(
            reasoning_tokens=usage["completion_tokens_details"]["reasoning_tokens"]
        ),
        total_tokens=usage["total_tokens"],
    )


def _error(problem: Problem) -> ResponseError:
    is_client_error = 400 <= problem.status < 500
    code: Literal["server_error", "invalid_prompt"] = "invalid_prompt" if is_client_error else "server_error"
    return ResponseError(code=code, message=problem.message, param=problem.param)
