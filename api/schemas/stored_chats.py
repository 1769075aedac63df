"""Schemas of chat completions that are kept by `store`."""

from __future__ import annotations

from typing import Any, Literal

from api.schemas.chat_objects import ChatCompletion
from core.schemas.base import Metadata, RequestModel
from core.schemas.objects import ResponseModel


class StoredChatCompletion(ChatCompletion):
    """A kept chat completion: the answer as it was sent, and its metadata."""

    metadata: dict[str, str]


class StoredChatUpdate(RequestModel):
    """`POST /v1/chat/completions/{id}`: the required metadata replaces the present one; null removes it."""

    metadata: Metadata | None = None


class DeletedChatCompletion(ResponseModel):
    """The response to a DELETE."""

    id: str
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: Literal[True] = True


class StoredMessage(ResponseModel):
    """A message of the request; `content_parts` are set, and `content` is null, where it was sent in parts."""

    id: str
    role: str
    content: str | None = None
    content_parts: list[dict[str, Any]] | None = None  # Any: parts as they were sent
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None  # Any: calls as they were sent
    tool_call_id: str | None = None
