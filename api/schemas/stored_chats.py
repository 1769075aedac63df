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


def stored_messages(chat_id: str, sent: Any) -> list[StoredMessage]:  # Any: as a client has sent it
    """The messages of a request. A server upstream may take other shapes than OpenAI's: what fits no field is left out."""
    messages = [each for each in sent if isinstance(each, dict)] if isinstance(sent, list) else []
    return [_stored_message(f"{chat_id}-{index}", each) for index, each in enumerate(messages)]


def _stored_message(message_id: str, sent: dict[str, Any]) -> StoredMessage:  # Any: JSON
    content = sent.get("content")
    parts, calls = _objects(content), _objects(sent.get("tool_calls"))
    texts = {name: sent[name] for name in ("role", "name", "tool_call_id") if isinstance(sent.get(name), str)}
    text = content if isinstance(content, str) else None
    return StoredMessage(
        **{"id": message_id, "role": "", "content": text, "content_parts": parts, "tool_calls": calls, **texts}
    )


def _objects(value: Any) -> list[dict[str, Any]] | None:  # Any: JSON
    is_fit = isinstance(value, list) and all(isinstance(each, dict) for each in value)
    return value if is_fit else None
