"""Items of `/v1/responses`: messages, function calls, their outputs and reasoning, in requests and responses alike.

Items of a request may leave out their ids; `with_ids` sets new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, field_validator

from core.schemas.base import RequestModel, Unsupported

ItemStatus = Literal["in_progress", "completed", "incomplete"]
_TEXT_PARTS: Final = ("input_text", "output_text", "text")
_KINDS: Final = ("message", "function_call", "function_call_output", "reasoning")


class InputText(RequestModel):
    """Text of a request."""

    type: Literal["input_text"] = "input_text"
    text: str


class OutputText(RequestModel):
    """Text of an answer; `logprobs` only on request."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list)  # Any: always empty, since no tool here cites
    # Any: OpenAI's logprobs, as chat has them
    logprobs: list[dict[str, Any]] = Field(default_factory=list, fail_fast=True)


class ReasoningText(RequestModel):
    """Text of reasoning."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class SummaryText(RequestModel):
    """A summary of reasoning; this server makes none."""

    type: Literal["summary_text"] = "summary_text"
    text: str


def _parts_of(content: object, kind: str) -> object:
    """Return content as a list of parts of one kind; a text is one part. A refusal becomes text."""
    if isinstance(content, str):
        return [{"type": kind, "text": content}]
    return [_part(part, kind) for part in content] if isinstance(content, list) else content


def _part(part: object, kind: str) -> object:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        return part
    if part["type"] == "refusal":
        return {"type": kind, "text": part.get("refusal")}
    if part["type"] not in _TEXT_PARTS:
        raise Unsupported(f"Content of type '{part['type'][:32]}' is not supported; send text.")
    return {"type": kind, "text": part.get("text")}


class InputMessage(RequestModel):
    """A message of a user, a developer or the system."""

    id: str = ""
    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer"]
    status: ItemStatus = "completed"
    content: list[InputText] = Field(fail_fast=True)

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, value: object) -> object:
        return _parts_of(value, "input_text")


class OutputMessage(RequestModel):
    """A message of the model."""

    id: str = ""
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: ItemStatus = "completed"
    content: list[OutputText] = Field(fail_fast=True)

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, value: object) -> object:
        return _parts_of(value, "output_text")


class FunctionCall(RequestModel):
    """A function call by the model; `arguments` is JSON text."""

    id: str = ""
    type: Literal["function_call"] = "function_call"
    call_id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=64)
    arguments: str
    status: ItemStatus = "completed"


class FunctionCallOutput(RequestModel):
    """The result of a function call."""

    id: str = ""
    type: Literal["function_call_output"] = "function_call_output"
    call_id: str = Field(min_length=1, max_length=256)
    output: str
    status: ItemStatus = "completed"

    @field_validator("output", mode="before")
    @classmethod
    def _only_text(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        parts = [_part(part, "input_text") for part in value]
        return "\n".join(InputText.model_validate(part).text for part in parts)


class Reasoning(RequestModel):
    """Reasoning before an answer. Encrypted reasoning of other servers is accepted and ignored."""

    id: str = ""
    type: Literal["reasoning"] = "reasoning"
    summary: list[SummaryText] = Field(default_factory=list, fail_fast=True)
    content: list[ReasoningText] = Field(default_factory=list, fail_fast=True)
    status: ItemStatus = "completed"

    @field_validator("content", "summary", mode="before")
    @classmethod
    def _null_is_none(cls, value: object) -> object:
        return [] if value is None else value

    @property
    def text(self) -> str:
        """The reasoning, or else its summary."""
        return "\n".join(part.text for part in self.content) or "\n".join(part.text for part in self.summary)


def _known_kind(value: object) -> object:
    """Drop a null id or status, and refuse images, references and items of hosted tools with a helpful message."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if isinstance(kind, str) and kind not in _KINDS:
        instead = "send the item itself" if kind == "item_reference" else f"use {', '.join(_KINDS)}"
        raise Unsupported(f"Items of type '{kind[:32]}' are not supported; {instead}.")
    return {name: each for name, each in value.items() if name not in ("id", "status") or each is not None}


_TAGS: Final = {"function_call": "Call", "function_call_output": "CallOutput", "reasoning": "Reasoning"}


def _tag(value: object) -> str:
    """Return the tag of an item; one without a type is a message."""
    kind, role = (
        (value.get("type"), value.get("role"))
        if isinstance(value, dict)
        else (getattr(value, "type", None), getattr(value, "role", None))
    )
    return _TAGS.get(str(kind)) or ("Answer" if role == "assistant" else "Message")


OutputItem = Annotated[
    Annotated[OutputMessage, Tag("Answer")]
    | Annotated[FunctionCall, Tag("Call")]
    | Annotated[Reasoning, Tag("Reasoning")],
    Discriminator(_tag),
]
Item = Annotated[
    Annotated[InputMessage, Tag("Message")]
    | Annotated[OutputMessage, Tag("Answer")]
    | Annotated[FunctionCall, Tag("Call")]
    | Annotated[FunctionCallOutput, Tag("CallOutput")]
    | Annotated[Reasoning, Tag("Reasoning")],
    Discriminator(_tag),
]
InputItem = Annotated[Item, BeforeValidator(_known_kind)]
AnyItem = InputMessage | OutputMessage | FunctionCall | FunctionCallOutput | Reasoning

_list = TypeAdapter(list[Item])
_PREFIXES: Final = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}


def item_id(kind: str, suffix: str, index: int | None = None) -> str:
    """Return the id of an item, from the suffix of its response and its index in it."""
    return _PREFIXES[kind] + suffix + ("" if index is None else f"_{index}")


def with_ids(items: Sequence[AnyItem], suffix: str) -> list[AnyItem]:
    """Return the items with new ids; the ids of a request are dropped, since they may repeat."""
    return [
        item.model_copy(update={"id": item_id(item.type, suffix, index), "status": "completed"})
        for index, item in enumerate(items)
    ]


def items_to_json(items: Sequence[AnyItem]) -> str:
    """Encode items as the text of a column."""
    return _list.dump_json(list(items)).decode()


def items_from_json(stored: str) -> list[AnyItem]:
    """Decode the text of `items_to_json`."""
    return list(_list.validate_json(stored))
