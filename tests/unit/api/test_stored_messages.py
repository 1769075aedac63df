"""Messages of stored chats, also of those that only a server upstream understands."""

from __future__ import annotations

from typing import Any

import pytest

from api.schemas.stored_chats import stored_messages


def test_text_parts_and_calls_are_shown_as_they_were_sent() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    sent = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "hi", "tool_calls": calls, "name": "me"},
    ]
    first, second = stored_messages("chatcmpl-1", sent)
    assert (first.id, first.content, first.content_parts) == ("chatcmpl-1-0", None, parts)
    assert (second.id, second.content, second.tool_calls, second.name) == ("chatcmpl-1-1", "hi", calls, "me")


@pytest.mark.parametrize("sent", [None, "x", 5, {}, [], ["x", 7]])
def test_a_request_without_messages_has_none(sent: Any) -> None:
    assert stored_messages("chatcmpl-1", sent) == []


def test_fields_of_other_types_are_left_out() -> None:
    (message,) = stored_messages("chatcmpl-1", [{"role": 5, "content": {"a": 1}, "tool_calls": "x", "name": []}])
    assert (message.role, message.content, message.content_parts, message.tool_calls, message.name) == ("", *[None] * 4)
